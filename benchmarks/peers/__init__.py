"""Servers to measure side by side: a file each says how it is started, asked and read."""
