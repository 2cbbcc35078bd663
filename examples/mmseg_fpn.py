"""A config of your own for mmseg: its Semantic FPN with MobileNetV4-Conv-S, for a data set of images and masks.

    mnv4 draw data/shapes    # or your own data: data_root and classes below
    python "$(python -c 'import mmseg; print(mmseg.__path__[0])')/.mim/tools/train.py" examples/mmseg_fpn.py

The config can lie anywhere. It needs no other file or tool of mnv4_mm. mIoU: not run yet.
"""

# `mmseg::sem_fpn/...` is shorter, but mmengine finds it only if the distribution is named mmsegmentation: not with the
# onedl- packages.
_base_ = [__import__('mmseg').__path__[0] + '/.mim/configs/sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512.py']
# Registers MobileNetV4 with OpenMMLab.
custom_imports = dict(imports=['mnv4_mm'], allow_failed_imports=False)

# ---- what you may want to change ----
data_root = 'data/shapes'
classes = ('disc', 'square', 'triangle', 'cross', 'ring', 'star', 'background')  # of mask values 1, 2, ...; 0: ignored
crop_size = (256, 256)  # height, width
batch_size = 8
norm_cfg = dict(type='BN')  # the base has SyncBN, which needs GPUs

# ---- the rest ----
model = dict(
    data_preprocessor=dict(size=crop_size),
    pretrained=None,  # the base names weights of its ResNet
    backbone=dict(
        _delete_=True,
        type='MobileNetV4',
        arch='conv_s',
        out_indices=(0, 1, 2, 3),  # C2 to C5, strides 4 to 32
        # init_cfg=dict(type='Pretrained', checkpoint='timm://mobilenetv4_conv_small.e2400_r224_in1k'),
    ),
    neck=dict(in_channels=[32, 64, 96, 128]),  # the backbone's out_channels
    decode_head=dict(num_classes=len(classes), norm_cfg=norm_cfg),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='RandomCrop', crop_size=crop_size),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]
dataset = dict(
    type='BaseSegDataset',
    data_root=data_root,
    metainfo=dict(classes=classes),
    reduce_zero_label=True,
)
train_dataloader = dict(batch_size=batch_size, dataset=dict(**dataset, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(**dataset, pipeline=test_pipeline))
test_dataloader = val_dataloader
