"""Scaling laws: fit, judge, decide, answer. Needs neither torch nor Ray."""
