"""Propose a study for a log and a budget, and write it as a commented file."""
