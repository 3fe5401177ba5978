"""Event logs: files, formats, column roles and timestamps."""
