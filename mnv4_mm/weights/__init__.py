"""Checkpoint and weight files: safe reading, published weights, strict loading into a module.

Nothing that would need running code is read. Imports no models and no OpenMMLab package but mmengine.
"""
