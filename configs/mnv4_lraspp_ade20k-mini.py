"""LR-ASPP on MNv4-Conv-S, trained from scratch on the 26 images of data/mini/ade. Minutes on a CPU.

python tools/train.py configs/mnv4_lraspp_ade20k-mini.py
"""

_base_ = [
    '_base_/models/lraspp.py',
    '_base_/datasets/ade-mini.py',
    '_base_/schedules/ade-mini.py',
    '_base_/segmentation_runtime.py',
]

model = dict(data_preprocessor=dict(size=(160, 160)))
