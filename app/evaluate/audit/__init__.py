"""Whether a reward model can be trusted: explanations, uncertainty, shift, robustness, attacks."""
