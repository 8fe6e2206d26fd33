"""Adapters in models: weights, their names, precision, sharding, initialisation. The only package that knows PEFT's layers."""
