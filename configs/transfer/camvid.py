"""CamVid, 11 classes, in minutes: LR-ASPP and Semantic FPN on 160-pixel crops, from scratch.

    python -m mnv4_mm transfer camvid --data CAMVID --workers 2

Trained on `train` (367 images) and evaluated on `val` (101); the last checkpoint counts.
"""

_base_ = '_base_/minutes.py'

title = 'CamVid'
heads = dict(
    lraspp=dict(config='mnv4_lraspp_ade20k-mini', iters=500, size=(352, 480)),
    fpn=dict(config='mnv4_fpn_ade20k-mini', iters=350, size=(352, 480)),
)
minutes = 3.0
