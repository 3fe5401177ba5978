"""Reading event logs: files, formats, schemas and times."""
