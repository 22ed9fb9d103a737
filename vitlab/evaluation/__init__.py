"""Metrics, protocols and pictures on arrays of per-example outputs, whatever the model was."""
