"""Plan and run the grid of runs."""
