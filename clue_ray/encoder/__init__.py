"""The user encoder and its loss."""
