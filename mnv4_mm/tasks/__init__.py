"""Detection and segmentation: everything that differs by task."""
