"""Tests of how the code is built: layers, light commands, the rules of the house, registries."""
