"""Studies and runs as data."""
