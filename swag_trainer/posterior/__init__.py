"""Level 1: what we believe about the weights."""
