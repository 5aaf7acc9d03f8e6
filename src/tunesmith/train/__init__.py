"""Training: the recipe, and the only place that knows Trainer and TRL names."""
