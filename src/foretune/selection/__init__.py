"""Which rows to train on: one file per selector family, one line each in `registry`."""
