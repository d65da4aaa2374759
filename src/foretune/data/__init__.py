"""Rows in: reading, formats, the target mask, duplicates, splits, profiles and batches."""
