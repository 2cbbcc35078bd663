"""LR-ASPP, the head of MobileNetV3 (arXiv 1905.02244) as built by mmseg, on MNv4-Conv-S at output stride 16.

The head reads C5 instead of the 960-channel feature map that mmseg's MobileNetV3 passes to it. Omitting that layer
saves more computation than the head takes.
"""

norm_cfg = dict(type='BN', eps=0.001)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(512, 512),  # height, width of a training crop
    ),
    backbone=dict(type='MobileNetV4', arch='conv_s', out_indices=(0, 1, 3), output_stride=16),
    decode_head=dict(
        type='GlobalLRASPPHead',
        in_channels=(32, 64, 128),
        in_index=(0, 1, 2),
        channels=128,
        input_transform='multiple_select',
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        act_cfg=dict(type='ReLU'),
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
