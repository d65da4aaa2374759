"""The report of a run: one HTML file without network, a model card, plain text."""
