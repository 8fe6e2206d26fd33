"""Packed prediction: many weight draws and examples in one forward pass."""
