"""Recognising, checking and drawing data sets."""
