"""What providers' requests and replies say: one module for each protocol."""
