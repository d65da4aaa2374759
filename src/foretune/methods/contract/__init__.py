"""The contract of a method: what every one must keep, checked on tiny models with random weights.

The project's tests run it over every registered method, and ``foretune methods check`` over one from outside.
"""
