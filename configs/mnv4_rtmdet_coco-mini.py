"""RTMDet on MNv4-Conv-S, trained from scratch on the 64 images of data/mini/coco. Minutes on a CPU.

python tools/train.py configs/mnv4_rtmdet_coco-mini.py
"""

_base_ = [
    '_base_/models/rtmdet.py',
    '_base_/datasets/coco-mini.py',
    '_base_/schedules/mini.py',
    '_base_/default_runtime.py',
]
