"""Diagonal empirical Fisher information: means over tensors, by norms of per-sample gradients that are never stored."""
