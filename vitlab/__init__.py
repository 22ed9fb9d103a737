"""vitlab: image recognition research in JAX and Flax, centred on Vision Transformers."""

__version__ = "0.1.0"
