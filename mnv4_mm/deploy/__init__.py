"""Deployment: ``export`` converts a checkpoint (``targets`` has a module per runtime), ``compare`` evaluates files."""
