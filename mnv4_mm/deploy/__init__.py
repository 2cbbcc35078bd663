"""From a trained checkpoint to a runtime: ``export`` converts (``targets``: one file for each), ``compare`` evaluates."""
