"""Audits preference pairs before training: what they reward, in words, and which labels look wrong."""
