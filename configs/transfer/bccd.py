"""BCCD, blood cells of three classes, in minutes: SSDLite and RTMDet, from scratch.

    python -m mnv4_mm transfer bccd --data data/mini/bccd --workers 2

Trained on the 292 images of train.txt and val.txt and evaluated on the 72 of test.txt; the last checkpoint counts.
A run of Conv-S on one core takes 2 minutes: with SSDLite on a CPU with AVX2, with RTMDet on one with AVX-512. RTMDet
had half the steps and a learning rate of 1e-3 at first. Scores varied even more from seed to seed then.
"""

_base_ = '_base_/minutes.py'

title = 'BCCD, test'
train = ['train', 'val']
test = ['test']
heads = dict(
    ssdlite=dict(
        config='mnv4_ssdlite_bccd',
        epochs=1,
        input_size=(192, 224),
        cfg_options={'train_dataloader.num_workers': 0},
        minutes=1.8,
    ),
    rtmdet=dict(
        config='mnv4_rtmdet_coco-mini',
        epochs=2,
        input_size=(192, 224),
        cfg_options={'train_dataloader.num_workers': 0, 'optim_wrapper.optimizer.lr': 3e-3},
        minutes=2.0,
    ),
)
