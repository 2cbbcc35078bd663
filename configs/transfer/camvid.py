"""CamVid, 11 classes, in minutes: LR-ASPP and Semantic FPN on 160-pixel crops, from scratch.

    python -m mnv4_mm transfer camvid --data CAMVID --workers 2

Trained on `train` (367 images) and evaluated on `val` (101) at 213x160 pixels, the short side of the crops; the last
checkpoint counts. Files are exported at 224x160, the next multiple of 32.
A run of Conv-S on one core with AVX-512 takes 1.5 minutes with LR-ASPP and 0.9 with Semantic FPN.
"""

_base_ = ['_base_/minutes.py', '_base_/camvid.py']

title = 'CamVid'
heads = dict(
    lraspp=dict(config='mnv4_lraspp_ade20k-mini', iters=500, size=(160, 224), minutes=1.2),
    fpn=dict(config='mnv4_fpn_ade20k-mini', iters=350, size=(160, 224), minutes=0.8),
)
# LR-ASPP on a CPU, in units of 1.2 minutes of Conv-S; those of the other nets are measured on BCCD.
costs = {'mnv4_conv_m': 2.9, 'mnv4_hybrid_m': 3.4}
