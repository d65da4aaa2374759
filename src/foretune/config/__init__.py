"""Settings: the specification of a fit, YAML and --set, and where each value came from."""
