"""Speed against other implementations: one file for each part, ``measure`` for the timing, ``run`` for all parts."""
