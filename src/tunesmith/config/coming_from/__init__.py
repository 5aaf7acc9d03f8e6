"""Configuration files of other programs: recognised by their keys, and read as settings of ours as far as they go."""
