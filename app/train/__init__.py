"""How a reward model is made: SAE, features, selection, head, bundle."""
