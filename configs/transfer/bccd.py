"""BCCD, blood cells of three classes, in minutes: SSDLite and RTMDet, from scratch.

    python -m mnv4_mm transfer bccd --data data/mini/bccd --workers 2

Trained on the 205 images of train.txt and evaluated on the 87 of val.txt; the last checkpoint counts.
"""

_base_ = '_base_/minutes.py'

title = 'BCCD'
heads = dict(
    ssdlite=dict(config='mnv4_ssdlite_bccd', epochs=2, cfg_options={'train_dataloader.num_workers': 0}),
    rtmdet=dict(config='mnv4_rtmdet_coco-mini', epochs=2, cfg_options={'train_dataloader.num_workers': 0}),
)
minutes = 3.0
