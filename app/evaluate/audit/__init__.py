"""Audit of a reward model: faithfulness, uncertainty, distribution shift, robustness and attacks."""
