"""Measures whether a reward model's filter helps online DPO: five arms on the same pairs, and best-of-n."""
