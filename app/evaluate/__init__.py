"""Whether a reward model is any good."""
