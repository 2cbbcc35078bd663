"""ADE20K: Semantic FPN and LR-ASPP from ImageNet weights, 40,000 steps. For GPUs.

    python -m mnv4_mm download ade20k
    python -m mnv4_mm transfer ade20k --dry-run      # every step, with 4 images
    python -m mnv4_mm transfer ade20k --launcher slurm --workers 8

Not run yet.
"""

_base_ = '_base_/full.py'

title = 'ADE20K'
heads = dict(
    fpn=dict(config='mnv4_fpn_ade20k', iters=40_000, size=(512, 512)),
    lraspp=dict(config='mnv4_lraspp_ade20k', iters=40_000, size=(512, 512)),
)
published = [
    *(
        dict(name=name, value=f'{iou} mIoU', protocol='Semantic FPN', source='iFormer, table 5')
        for name, iou in [('ResNet-18', 32.9), ('FastViT-SA12', 38.0), ('RepViT-M1.1', 40.6), ('ResNet-50', 36.7)]
    ),
    *(
        dict(name=name, value=f'{iou} mIoU', protocol='Semantic FPN', source='README of CPUBone')
        for name, iou in [('CPUBone-B0', 37.9), ('CPUBone-B1', 39.2), ('CPUBone-B2', 42.1), ('CPUBone-B3', 44.1)]
    ),
]
