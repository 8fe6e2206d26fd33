"""Level 4: how good a posterior is on held-out data, beside the methods it has to beat."""
