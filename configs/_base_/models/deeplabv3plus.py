"""DeepLabV3+ (arXiv 1802.02611) on MNv4-Conv-M at output stride 16: heads of mmseg's mobilenet-v2-d8_deeplabv3plus.

mmseg's config has output stride 8. The dilations here are half as large, so that they cover the same image area.
"""

norm_cfg = dict(type='BN')
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
    backbone=dict(type='MobileNetV4', arch='conv_m', out_indices=(0, 2, 3), output_stride=16),
    decode_head=dict(
        type='DepthwiseSeparableASPPHead',
        in_channels=256,
        in_index=2,
        channels=512,
        dilations=(1, 6, 12, 18),
        c1_in_channels=48,
        c1_channels=48,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=dict(
        type='FCNHead',
        in_channels=160,
        in_index=1,
        channels=256,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
