"""Global batches: from users of a corpus to the arrays of one training step."""
