"""Image augmentation for detection and segmentation."""
