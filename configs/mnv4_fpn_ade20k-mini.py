"""Semantic FPN on MNv4-Conv-S, trained from scratch on the 26 images of data/mini/ade. Minutes on a CPU.

python tools/train.py configs/mnv4_fpn_ade20k-mini.py
"""

_base_ = [
    '_base_/models/fpn.py',
    '_base_/datasets/ade-mini.py',
    '_base_/schedules/ade-mini.py',
    '_base_/segmentation_runtime.py',
]

# Narrower than the full-size config, to train on a CPU.
model = dict(
    data_preprocessor=dict(size=(160, 160)),
    backbone=dict(arch='conv_s'),
    neck=dict(in_channels=[32, 64, 96, 128], out_channels=64),
    decode_head=dict(in_channels=[64, 64, 64, 64], channels=64),
)
