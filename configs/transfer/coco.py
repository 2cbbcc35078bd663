"""COCO 2017: RetinaNet as in the paper's table 7 in a 12-epoch schedule, and SSDLite; from ImageNet weights. For GPUs.

    python -m mnv4_mm download coco2017
    python -m mnv4_mm transfer coco --dry-run        # every step, with 4 images
    python -m mnv4_mm transfer coco --launcher slurm --workers 8

Not run yet.
"""

_base_ = '_base_/full.py'

title = 'COCO'
heads = dict(
    retinanet=dict(config='mnv4_retinanet-1x_coco', epochs=12),
    ssdlite=dict(config='mnv4_ssdlite_coco', epochs=24),  # x 5 by RepeatDataset
)
published = [
    *(
        dict(name=name, value=f'{ap} AP', protocol='RetinaNet at 384, 600 epochs', source='arXiv 2404.10518, table 7')
        for name, ap in [
            ('EfficientFormer-L1', 29.5),
            ('MobileNetV1 x 1.5', 31.0),
            ('MNv4-Conv-M', 32.6),
            ('MobileNet-MultiAvg x 1.5', 32.7),
            ('MobileNetV2 x 2', 32.9),
            ('MobileNetV3-Large x 2', 33.2),
            ('MNv4-Hybrid-M', 34.0),
        ]
    ),
    *(
        dict(name=name, value=f'{ap} AP', protocol='RetinaNet', source='README of CPUBone')
        for name, ap in [('CPUBone-B0', 37.5), ('CPUBone-B1', 39.0), ('CPUBone-B2', 40.4), ('CPUBone-B3', 42.9)]
    ),
]
