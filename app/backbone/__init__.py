"""The frozen LLM: where its weights come from, tokenization, packing, and the forward pass up to a layer."""
