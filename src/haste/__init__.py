"""Sparse, dynamically trained output layers for models with a thousand to a hundred million labels."""

__version__ = "0.1.0"
