"""Speed as ratios: a file a part of the work, `measure` for how, `run` for all of them."""
