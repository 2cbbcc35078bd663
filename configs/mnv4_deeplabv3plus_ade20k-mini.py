"""DeepLabV3+ on MNv4-Conv-S, trained from scratch on the 26 images of data/mini/ade. Minutes on a CPU.

python tools/train.py configs/mnv4_deeplabv3plus_ade20k-mini.py
"""

_base_ = [
    '_base_/models/deeplabv3plus.py',
    '_base_/datasets/ade-mini.py',
    '_base_/schedules/ade-mini.py',
    '_base_/segmentation_runtime.py',
]

# Narrower than the full-size config, to train on a CPU.
model = dict(
    data_preprocessor=dict(size=(160, 160)),
    backbone=dict(arch='conv_s'),
    decode_head=dict(in_channels=128, channels=128, c1_in_channels=32, c1_channels=24),
    auxiliary_head=dict(in_channels=96, channels=64),
)
