"""Supervised fine-tuning of causal language models that shows its work."""

__version__ = "0.1.0"

__all__ = ["__version__"]
