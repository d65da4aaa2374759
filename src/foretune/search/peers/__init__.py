"""Searchers of other packages, through those packages (extra ``peers``), as strategies over the same pool.

A peer proposes in the space of the pool's columns; the pool member nearest to its proposal that was not begun is taken.
Each is made anew from the runs at every decision, so that it is as resumable as everything here.
"""
