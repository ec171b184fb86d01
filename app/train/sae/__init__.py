"""Sparse autoencoders: training, quality, and importing pretrained ones."""
