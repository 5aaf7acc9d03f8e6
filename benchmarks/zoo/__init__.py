"""Tiny models with random weights of the architectures that the installed transformers has, and what is run on each."""
