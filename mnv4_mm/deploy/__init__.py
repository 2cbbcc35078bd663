"""From a trained checkpoint to a runtime: `graph` is inside each file, `targets` a file a runtime, `compare` judges."""
