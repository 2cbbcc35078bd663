"""From a trained checkpoint to a runtime: ``export`` converts (``targets``: a file for each), ``compare`` evaluates."""
