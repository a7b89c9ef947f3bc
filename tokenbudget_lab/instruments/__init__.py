"""Making a client's calls pass through a budget: one module for each way into an SDK."""
