"""The figures of the page, and their style."""
