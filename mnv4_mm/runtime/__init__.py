"""Running an exported file: numpy, OpenCV and the runtime only."""
