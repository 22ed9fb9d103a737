"""Flax Linen modules, each with the loss that defines it."""
