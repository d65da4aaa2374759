"""Search methods judged on stored runs: the search is real, the training is looked up, time is virtual.

`world` makes a task's runs into something to search, `simulation` drives a strategy through it, `regret` scores what
was at hand at every moment, `contestants` says who takes part, `adversaries` spoils the experience on purpose.
"""
