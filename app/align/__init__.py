"""Online DPO: aligning a policy with a reward model, round by round."""
