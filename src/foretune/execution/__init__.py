"""Running leases: worker processes that keep the base model loaded, and the loop that feeds them."""
