"""Science: grids of arms × tasks × sizes × seeds, paired statistics."""
