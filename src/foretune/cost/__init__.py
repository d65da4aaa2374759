"""Torch-free arithmetic: shapes, operations, memory, and the forecast of a run."""
