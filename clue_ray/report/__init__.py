"""A study's results as a page, figures and tables."""
