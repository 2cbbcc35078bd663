"""Python API for tools and notebooks: check data, train, evaluate, infer."""
