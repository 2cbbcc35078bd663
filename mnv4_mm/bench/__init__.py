"""Benchmark against other implementations: a module per part, ``measure`` for timing, and ``run`` for all parts."""
