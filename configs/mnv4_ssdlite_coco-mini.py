"""SSDLite on MNv4-Conv-S, trained from scratch on the 64 images of data/mini/coco, for tests.

python tools/train.py configs/mnv4_ssdlite_coco-mini.py
"""

_base_ = [
    '_base_/models/ssdlite.py',
    '_base_/datasets/coco-mini.py',
    '_base_/schedules/mini.py',
    '_base_/default_runtime.py',
]
