"""SSDLite on MNv4-Conv-S at 320x320, COCO 2017, from scratch: the recipe of mmdet's ssdlite_mobilenetv2 (21.3 AP).

    python tools/train.py configs/mnv4_ssdlite_coco.py --auto-scale-lr
    torchrun --nproc_per_node=8 tools/train.py configs/mnv4_ssdlite_coco.py --launcher pytorch

Cost: 600 epochs = 120 epochs x RepeatDataset 5; 117,266 images / 192 = 611 steps per epoch, 366,480 in all.
AP: not run yet.
"""

_base_ = ['_base_/models/ssdlite.py', '_base_/datasets/coco.py', '_base_/default_runtime.py']

# ---- settings you may want to change ----
batch_size = 24  # images per GPU; 8 GPUs x 24 = 192
base_lr = 0.015  # for 192 images per step; --auto-scale-lr adapts it to your batch size
max_epochs = 120  # x 5 by RepeatDataset
input_size = (320, 320)  # width, height; the anchors are designed for 320

# ---- the rest of the recipe ----
train_pipeline = [
    dict(type='LoadAnnotations', with_bbox=True),
    # Reads the image and applies mmdet's Expand, MinIoURandomCrop, Resize, RandomFlip and PhotoMetricDistortion.
    dict(
        type='SSDAugmentation',
        scale=input_size,
        mean=(123.675, 116.28, 103.53),  # RGB
        expand_ratio=(1, 4),
        min_ious=(0.1, 0.3, 0.5, 0.7, 0.9),
        min_crop_size=0.3,
        flip_prob=0.5,
        brightness_delta=32,
        contrast_range=(0.5, 1.5),
        saturation_range=(0.5, 1.5),
        hue_delta=18,
    ),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=input_size, keep_ratio=False),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=4,
    batch_sampler=None,
    dataset=dict(
        _delete_=True,
        type='RepeatDataset',
        times=5,
        dataset=dict(
            type='CachedCocoDataset',
            data_root='data/coco/',
            ann_file='annotations/instances_train2017.json',
            data_prefix=dict(img='train2017/'),
            filter_cfg=dict(filter_empty_gt=True, min_size=32),
            pipeline=train_pipeline,
        ),
    ),
)
val_dataloader = dict(batch_size=8, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=5)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=base_lr, momentum=0.9, weight_decay=4e-5))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='CosineAnnealingLR', begin=0, T_max=max_epochs, end=max_epochs, by_epoch=True, eta_min=0),
]
auto_scale_lr = dict(enable=False, base_batch_size=192)
