"""A package, since mmsegmentation 1.2.2 installs another one named ``tests``, which a test's processes would import."""
