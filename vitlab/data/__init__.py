"""Files to batches: sources of examples, preprocessing and the input pipeline. No JAX in here."""
