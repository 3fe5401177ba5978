"""Runs of other tools: their tables, trackers and logs as a runs table."""
