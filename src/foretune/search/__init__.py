"""Which configuration to run next: pure, seedable, free of torch and of the wall clock."""
