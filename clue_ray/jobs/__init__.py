"""A study as a job on a Ray cluster."""
