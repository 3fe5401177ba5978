"""Studies and runs as data: YAML, specs, grids, columns, parameter and FLOP counts."""
