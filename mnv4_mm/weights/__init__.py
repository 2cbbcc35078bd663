"""Checkpoint and weight files: safe reading, published weights, strict loading into a module.

Files that would run code when read are refused. Imports no models, and of OpenMMLab only mmengine.
"""
