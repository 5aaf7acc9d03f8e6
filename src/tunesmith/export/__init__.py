"""What leaves a run: the saved model, and the merged one."""
