"""What a reward model is: synchronous torch that knows no HTTP."""
