"""The head of a reward model: its training, losses, calibration, and baselines on the same pairs."""
