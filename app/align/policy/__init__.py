"""The language model that is aligned: sampling, log-probabilities and DPO training."""
