"""Every run ever made on this machine, and what others published: the store and its importers."""
