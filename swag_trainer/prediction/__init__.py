"""Level 3: from a posterior to probabilities."""
