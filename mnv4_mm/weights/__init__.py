"""Checkpoint and weight files to tensors: safe reading, strict loading, published weights."""
