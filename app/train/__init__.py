"""Trains reward models and SAEs: features, selection, head, calibration, names, bundle."""
