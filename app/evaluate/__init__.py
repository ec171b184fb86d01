"""How good a reward model is: accuracy, baselines, reports and figures."""
