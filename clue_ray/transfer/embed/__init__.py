"""Embed all users of a log with Ray Data."""
