"""Reward models: directions, pooling, head, calibration, explanations, composites, bundles and the engine."""
