"""How far a fitted law can be trusted."""
