"""The Ray cluster: connecting to it, and what fits on its nodes."""
