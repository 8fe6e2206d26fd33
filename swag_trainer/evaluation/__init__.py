"""How good is it: measured on data that was held out."""
