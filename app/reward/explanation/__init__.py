"""Explains rewards: contributions of features, concepts and tokens, phrases, and sentences in words."""
