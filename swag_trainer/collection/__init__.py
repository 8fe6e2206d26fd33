"""Level 3: from a training run to a posterior."""
