"""SSDLite on MNv4-Conv-S, the 64 pictures of data/mini/coco from scratch: what `make train` runs.

python tools/train.py configs/mnv4_ssdlite_coco-mini.py
"""

_base_ = [
    '_base_/models/ssdlite.py',
    '_base_/datasets/coco-mini.py',
    '_base_/schedules/mini.py',
    '_base_/default_runtime.py',
]
