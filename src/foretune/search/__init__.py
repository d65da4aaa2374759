"""Which configuration to train next, for how long, and when to stop: pure, seedable, torch-free.

`ask_tell.AskTell` keeps leases, runs, budget and journal; a strategy (`zero_shot`, `grid`) decides.
"""
