"""RetinaNet with dense FPN and head on MNv4-Conv-M, COCO 2017, 12 epochs at 1333x800: the common transfer benchmark.

    torchrun --nproc_per_node=8 tools/train.py configs/mnv4_retinanet-1x_coco.py --launcher pytorch

Model and schedule are those of mmdet's retinanet_r50_fpn_1x. The optimiser is AdamW with 1e-4, with which results of
PVT, PoolFormer and later mobile backbones are published. Published AP: CPUBone-B0/B1/B2 37.5/39.0/40.4.
As there, the backbone starts from ImageNet weights, which the first run downloads; without a network, an error message
names the file to put in place. `--backbone` selects the weights with the backbone.
Cost: 117,266 / 16 = 7,330 steps per epoch, 87,960 in all.
AP: not run yet.
"""

_base_ = ['_base_/datasets/coco.py', '_base_/default_runtime.py']

# ---- settings you may want to change ----
batch_size = 2  # images per GPU; 8 GPUs x 2 = 16
base_lr = 1e-4  # for 16 images per step
max_epochs = 12
input_size = (1333, 800)  # width, height

# ---- the rest of the recipe ----
model = dict(
    type='RetinaNet',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    # Norm statistics are frozen: 2 images per GPU are too few to update them.
    backbone=dict(
        type='MobileNetV4',
        arch='conv_m',
        out_indices=(0, 1, 2, 3),
        norm_eval=True,
        init_cfg=dict(type='Pretrained', checkpoint='timm://mobilenetv4_conv_medium.e500_r256_in1k'),
    ),
    neck=dict(
        type='FPN',
        in_channels=[48, 80, 160, 256],
        out_channels=256,
        start_level=1,
        num_outs=5,
        add_extra_convs='on_input',
    ),
    bbox_head=dict(
        type='RetinaHead',
        num_classes=80,
        in_channels=256,
        feat_channels=256,
        stacked_convs=4,
        anchor_generator=dict(
            type='AnchorGenerator',
            octave_base_scale=4,
            scales_per_octave=3,
            ratios=[0.5, 1.0, 2.0],
            strides=[8, 16, 32, 64, 128],
        ),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.0, 0.0, 0.0, 0.0], target_stds=[1.0, 1.0, 1.0, 1.0]),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type='L1Loss', loss_weight=1.0),
    ),
    train_cfg=dict(
        assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0, ignore_iof_thr=-1),
        sampler=dict(type='PseudoSampler'),
        allowed_border=-1,
        pos_weight=-1,
        debug=False,
    ),
    test_cfg=dict(
        nms_pre=1000, min_bbox_size=0, score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=100
    ),
)
train_dataloader = dict(batch_size=batch_size)
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=base_lr, weight_decay=1e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', begin=0, end=max_epochs, by_epoch=True, milestones=[8, 11], gamma=0.1),
]
auto_scale_lr = dict(enable=False, base_batch_size=16)
