"""Which rows to train on: one file for each selector, one line each in `registry`.

``base``            the seam: Request, Cost, Selection, Selector, BlockMap
``run``             the way in: chains and fusions carried out, the result checked
``greedy``          orders of rows from numbers: facility location and relatives, graph cut, k-centre, herding
``utility``         how much one row helps a model with another: all pairs, computed once and kept
"""
