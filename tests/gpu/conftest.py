"""The fixtures of whole fits."""

from tests.whole_fits import fast_fit, ground, own_store

__all__ = ["fast_fit", "ground", "own_store"]
