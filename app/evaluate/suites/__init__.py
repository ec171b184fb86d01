"""Evaluation suites: RewardBench 2 and RM-Bench with their own metrics, and pairs that show limitations."""
