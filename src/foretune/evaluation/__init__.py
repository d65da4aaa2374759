"""Scores with standard errors: likelihood, generation, metrics, paired comparison, forgetting."""
