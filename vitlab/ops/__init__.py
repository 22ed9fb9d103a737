"""Pure JAX functions that several methods share."""
