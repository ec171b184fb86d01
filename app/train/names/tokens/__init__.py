"""Automatic names of features of tokens, from the tokens on which their latents fire."""
