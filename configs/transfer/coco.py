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
    dict(
        name='MNv4-Conv-M, RetinaNet at 384',
        value='32.6 AP',
        protocol='600 epochs, TF Model Garden',
        source='arXiv 2404.10518, table 7',
    ),
    dict(
        name='MNv4-Hybrid-M, RetinaNet at 384',
        value='34.0 AP',
        protocol='600 epochs, TF Model Garden',
        source='arXiv 2404.10518, table 7',
    ),
]
