"""A study in which something dies every few seconds, and whose table must be the same."""
