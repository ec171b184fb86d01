"""Does a reward model's filter help online DPO? Five arms, the same pairs, and best-of-n beside them."""
