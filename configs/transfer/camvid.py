"""CamVid, 11 classes, in minutes: LR-ASPP and Semantic FPN on 160-pixel crops, from scratch.

    python -m mnv4_mm transfer camvid --data CAMVID --workers 2

Trained on `train` (367 images) and evaluated on `val` (101) at 213x160 pixels, the short side of the crops; the last
checkpoint counts. Files are exported at 224x160, the next multiple of 32.
"""

_base_ = '_base_/minutes.py'

title = 'CamVid'
heads = dict(
    lraspp=dict(config='mnv4_lraspp_ade20k-mini', iters=500, size=(160, 224)),
    fpn=dict(config='mnv4_fpn_ade20k-mini', iters=350, size=(160, 224)),
)
block = 10  # frames of a drive
minutes = 3.0
published = [
    dict(
        name='ENet',
        value='51.3 mIoU',
        protocol='test, whole images of 480x360, from scratch; trained on which images was not checked',
        source='the comparison in the README of CGNet',
    ),
    dict(
        name='CGNet',
        value='65.6 mIoU',
        protocol='test, whole images of 480x360, trained on train and val, from scratch',
        source='its README',
    ),
]
