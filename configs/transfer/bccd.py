"""BCCD, blood cells of three classes, in minutes: SSDLite and RTMDet, from scratch.

    python -m mnv4_mm transfer bccd --data data/mini/bccd --workers 2

Trained on the 292 images of train.txt and val.txt and evaluated on the 72 of test.txt; the last checkpoint counts.
A run of Conv-S with SSDLite takes 2 minutes on one core, and one with RTMDet 3. With RTMDet, scores vary so much from
seed to seed that these runs do not rank nets.
"""

_base_ = '_base_/minutes.py'

title = 'BCCD, test'
train = ['train', 'val']
test = ['test']
heads = dict(
    ssdlite=dict(
        config='mnv4_ssdlite_bccd', epochs=1, input_size=(192, 224), cfg_options={'train_dataloader.num_workers': 0}
    ),
    rtmdet=dict(
        config='mnv4_rtmdet_coco-mini', epochs=1, input_size=(192, 224), cfg_options={'train_dataloader.num_workers': 0}
    ),
)
minutes = 2.0
