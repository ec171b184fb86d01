"""How a reward model is trained: features, selection, head, calibration, bundle."""
