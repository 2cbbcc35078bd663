"""Measurements that compare nets: transfer to real data, rooflines, blocks in isolation."""
