"""Gain from a teacher on BCCD: SSDLite on Conv-S with and without a teacher, five seeds each.

The teacher is SSDLite on EfficientNet-Lite0 from ImageNet weights, which are downloaded, or read from --weights-dir.

    python -m mnv4_mm transfer distillation-bccd --data data/mini/bccd --workers 2

Trained on the 292 images of train.txt and val.txt and evaluated on the 72 of test.txt; the last checkpoint counts.
"""

title = 'BCCD, test, with and without a teacher'
train = ['train', 'val']
test = ['test']
heads = dict(
    ssdlite=dict(config='mnv4_ssdlite_bccd', epochs=3, cfg_options={'train_dataloader.num_workers': 0}, minutes=3.2)
)
nets = ['mnv4_conv_s']
seeds = [0, 1, 2, 3, 4]
controls = ['distilled']
teacher = dict(net='timm:tf_efficientnet_lite0', start='imagenet')
