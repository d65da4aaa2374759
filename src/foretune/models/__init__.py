"""Models in: fetching, loading, and what their modules are for."""
