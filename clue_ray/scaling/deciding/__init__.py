"""What to train next: allocation, budgets, isoFLOP, added runs."""
