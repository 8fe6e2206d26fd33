"""Calibration on held-out data: scale and temperature, thresholds, conformal quantiles."""
