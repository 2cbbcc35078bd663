"""Reports on training runs and data sets, and tables of parity, complexity and published weights."""
