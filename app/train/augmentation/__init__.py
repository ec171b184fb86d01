"""Augmented pairs: insertions and rewrites that raise the reward of a response without improving it."""
