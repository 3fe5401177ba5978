"""Fit one law to a runs table, with intervals."""
