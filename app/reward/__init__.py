"""What a reward model is: directions, head, calibration, explanations, bundles on disk, and the engine."""
