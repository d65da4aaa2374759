"""The training loop and what it stands on: updates, the target-only head, the optimiser, checkpoints, guards."""
