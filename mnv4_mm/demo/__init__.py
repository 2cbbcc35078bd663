"""A local web page that shows what a model predicts for an image."""
