"""The training layout of a corpus: flat arrays that every process of a node maps into memory."""
