"""Selecting rows: the language, the engine, every selector, and selection inside fits and studies."""
