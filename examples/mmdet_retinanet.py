"""A config of your own for mmdet: its RetinaNet with MobileNetV4-Conv-S, for a data set in COCO's layout.

    mnv4 draw data/shapes    # or your own data: data_root and classes below
    python "$(python -c 'import mmdet; print(mmdet.__path__[0])')/.mim/tools/train.py" examples/mmdet_retinanet.py

The config can lie anywhere. It needs no other file or tool of mnv4_mm. AP: not run yet.
"""

_base_ = ['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py']
# Registers MobileNetV4 with OpenMMLab.
custom_imports = dict(imports=['mnv4_mm'], allow_failed_imports=False)

# ---- what you may want to change ----
data_root = 'data/shapes/'
classes = ('disc', 'square', 'triangle', 'cross', 'ring', 'star')
scale = (320, 320)  # width, height
batch_size = 8
base_lr = 0.01  # SGD; for 16 images a step in mmdet's recipe

# ---- the rest ----
model = dict(
    backbone=dict(
        _delete_=True,
        type='MobileNetV4',
        arch='conv_s',
        out_indices=(0, 1, 2, 3),  # C2 to C5, strides 4 to 32
        # init_cfg=dict(type='Pretrained', checkpoint='timm://mobilenetv4_conv_small.e2400_r224_in1k'),
    ),
    neck=dict(in_channels=[32, 64, 96, 128]),  # the backbone's out_channels
    bbox_head=dict(num_classes=len(classes)),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(
    batch_size=batch_size,
    dataset=dict(
        data_root=data_root,
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train/'),
        metainfo=dict(classes=classes),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='val/'),
        metainfo=dict(classes=classes),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val.json')
test_evaluator = val_evaluator
optim_wrapper = dict(optimizer=dict(lr=base_lr))
