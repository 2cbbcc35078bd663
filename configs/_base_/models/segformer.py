"""SegFormer's all-MLP head (arXiv 2105.15203) on MNv4-Conv-M: the head of mmseg's segformer_mit-b0."""

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
    backbone=dict(type='MobileNetV4', arch='conv_m', out_indices=(0, 1, 2, 3)),
    decode_head=dict(
        type='SegformerHead',
        in_channels=[48, 80, 160, 256],
        in_index=[0, 1, 2, 3],
        channels=256,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
