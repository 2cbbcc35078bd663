"""Data set formats that are recognised and checked."""
