"""The laws: formulas, parameters, bounds."""
