"""Judging a model by the answers it writes: generation, reading of answers, scores.

Nothing heavy is imported here; the modules of this package load torch and transformers when they are used.
"""
