"""How a reward model is reached: async, HTTP, metrics."""
