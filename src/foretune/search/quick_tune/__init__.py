"""Quick-Tune, and its variant without refit: the published meta-learned optimiser, as a strategy to compare with.

`surrogate` holds the two meta-learned models (the only torch in the search, imported when one is fitted or asked),
`strategy` the loop. Sources: Arango et al. 2024 (2306.03828) and, for transfer without refit, Strangmann et al. 2024
(2411.01195). What is done differently from the public code is listed in docs/search.md and held by tests.
"""
