"""Downstream tasks: examples, features, heads, scores."""
