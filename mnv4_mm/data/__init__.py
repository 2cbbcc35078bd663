"""Data sets: recognise, check, read, augment, draw and download them."""
