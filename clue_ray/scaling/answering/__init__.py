"""One study's analysis and its answer in sentences."""
