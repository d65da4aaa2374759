"""Regularizers as plug-ins of the training loop: one file each, one line each in `registry`."""
