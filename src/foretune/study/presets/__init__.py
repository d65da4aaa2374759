"""The studies that are shipped, one YAML file each."""
