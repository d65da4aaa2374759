"""What leaves Foretune: adapters, merged models, and the check that they answer as evaluated."""
