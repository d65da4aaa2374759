"""Ways of adapting a model: one file per method, one line each in `registry`."""
