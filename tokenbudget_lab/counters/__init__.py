"""Ways of counting tokens: pick one of these, or let `counter_for(model)` pick."""
