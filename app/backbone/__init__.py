"""The frozen LLM: its sources, supported architectures, tokenization, packing, and the forward pass."""
