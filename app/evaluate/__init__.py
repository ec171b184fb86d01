"""Evaluation of reward models: accuracy, baselines, reports and their figures."""
