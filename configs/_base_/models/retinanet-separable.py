"""The paper's detector (section 7.2) on MNv4-Conv-M: RetinaNet with separable 3x3 convolutions.

P3-P7 have 256 channels and the towers 4 convolutions. FPN, towers and predictors use separable convolutions. As in TF
Model Garden's RetinaNet head, with which the paper's detector was trained, all levels share the towers and each level
has its own batch norm. Values that the paper does not specify are those of the Model Garden's mobile RetinaNets (focal
loss gamma 1.5, anchors of 3 strides, batch norm eps 1e-3 and momentum 0.99) or ours: the box loss (smooth L1, beta 0.1,
weight 1), the thresholds of assigner and NMS, and the batch norm of the backbone, which matches timm's weights.
"""

norm_cfg = dict(type='BN', eps=1e-3, momentum=0.01)
model = dict(
    type='RetinaNet',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    backbone=dict(type='MobileNetV4', arch='conv_m', out_indices=(1, 2, 3)),
    neck=dict(
        type='FPN',
        in_channels=[80, 160, 256],
        out_channels=256,
        num_outs=5,
        add_extra_convs='on_output',
        relu_before_extra_convs=True,
        no_norm_on_lateral=True,
        conv_cfg=dict(type='SeparableConv2d'),
        norm_cfg=norm_cfg,
    ),
    bbox_head=dict(
        type='SeparableRetinaHead',
        num_classes=80,
        num_ins=5,
        in_channels=256,
        feat_channels=256,
        stacked_convs=4,
        conv_cfg=dict(type='SeparableConv2d'),
        norm_cfg=norm_cfg,
        anchor_generator=dict(
            type='AnchorGenerator',
            octave_base_scale=3,  # anchors of 24, 48, 96, 192, 384 pixels: TF's anchor_size 3
            scales_per_octave=3,
            ratios=[0.5, 1.0, 2.0],
            strides=[8, 16, 32, 64, 128],
        ),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.0, 0.0, 0.0, 0.0], target_stds=[1.0, 1.0, 1.0, 1.0]),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=1.5, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type='SmoothL1Loss', beta=0.1, loss_weight=1.0),
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
