"""Names the selected features by the tokens on which their latents fire."""
