"""The paper's RetinaNet on MNv4-Conv-S, trained from scratch on the 64 images of data/mini/coco. Minutes on a CPU.

python tools/train.py configs/mnv4_retinanet_coco-mini.py
"""

_base_ = [
    '_base_/models/retinanet-separable.py',
    '_base_/datasets/coco-mini.py',
    '_base_/schedules/mini.py',
    '_base_/default_runtime.py',
]

# The batch norm of the full-size config averages over more steps than this run has.
norm_cfg = dict(type='BN', momentum=0.1)
model = dict(
    backbone=dict(arch='conv_s'),
    neck=dict(in_channels=[64, 96, 128], norm_cfg=norm_cfg),
    bbox_head=dict(norm_cfg=norm_cfg),
)
