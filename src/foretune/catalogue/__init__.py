"""Torch-free declarations: search spaces and traits of every method, the known models and data sets, the priors."""
