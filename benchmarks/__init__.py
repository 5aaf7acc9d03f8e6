"""Speed and memory against the libraries underneath, measured side by side on the same machine in the same minutes."""
