"""What tools and notebooks call: find and merge a config, train, evaluate, infer."""
