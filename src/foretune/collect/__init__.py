"""Filling the experience on purpose: one shared design of configurations over a list of tasks."""
