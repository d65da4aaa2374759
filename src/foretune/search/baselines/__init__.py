"""Searchers that `transfer` is compared with; each is a strategy over the same pool and usable in a fit as well."""
