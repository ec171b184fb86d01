"""Online DPO: aligns a language model with a reward model in rounds of sampling and training."""
