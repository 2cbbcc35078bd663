"""SSDLite on MNv4-Conv-S with a level of stride 8, from scratch on BCCD's blood cells: the config of `make train`.

    python tools/train.py configs/mnv4_ssdlite_bccd.py

Platelets are 20 pixels wide at 320x256, less than half the smallest anchor of mnv4_ssdlite_coco. The additional level
and anchors for these boxes are what `--levels 8 --fit-anchors` set for data of your own.
Cost: 6 epochs x 4 x 205 images = 612 steps of 8; 9 minutes of processor time with AVX-512, evaluation included.
AP: 0.548, AP50 0.884 on the 87 held-out images.
"""

_base_ = ['_base_/models/ssdlite.py', '_base_/datasets/bccd.py', '_base_/default_runtime.py']

# ---- settings you may want to change ----
max_epochs = 6  # x 4 by RepeatDataset
base_lr = 1.5e-3  # for 8 images per step

# ---- the rest of the recipe ----
channels = (64, 96, 960, 256)  # C3, C4, the 960-channel feature map, and one level of the neck
model = dict(
    backbone=dict(out_indices=(1, 2, 4)),
    neck=dict(in_channels=channels[:3], out_channels=channels, level_strides=(2,), level_paddings=(1,)),
    bbox_head=dict(
        in_channels=channels,
        num_classes=3,
        anchor_generator=dict(
            strides=[8, 16, 32, 64],
            ratios=[[1.3], [1.3], [1.3], [1.3]],
            min_sizes=[18, 46, 80, 120],  # pixels: platelets on the first level, red cells on the second
            max_sizes=[30, 68, 120, 180],
        ),
    ),
)
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=2)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=base_lr, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=10),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=30),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.02, by_epoch=True, T_max=max_epochs, convert_to_iter_based=True),
]
auto_scale_lr = dict(enable=False, base_batch_size=8)
