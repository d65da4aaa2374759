"""Which rows to train on: one file for each selector, one line each in `registry`.

``base``            the seam: Request, Cost, Selection, Selector, BlockMap
``blocks``          the BlockMap of this process
``greedy``          orders of rows from numbers: facility location and relatives, graph cut, k-centre, herding
"""
