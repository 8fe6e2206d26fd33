"""Level 1: numbers about probabilities; numpy in, numbers out."""
