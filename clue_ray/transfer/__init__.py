"""Use a trained encoder: embed users, evaluate downstream tasks."""
