"""BCCD: 364 images of blood cells with boxes of three classes, in Pascal VOC, part of the repository (data/mini/bccd).

The 205 images of its train.txt are trained on, the 87 of its val.txt are held out.
"""

own_data = dict(root='data/mini/bccd')  # recognised, checked and prepared as the data set of `--data`
metainfo = dict(classes=('RBC', 'WBC', 'Platelets'))  # red cells, white cells, platelets
input_size = (320, 256)  # width, height, for images of 640x480; exported files take multiples of 32

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomResize', scale=input_size, ratio_range=(0.8, 1.25), keep_ratio=False),
    dict(type='RandomCrop', crop_size=input_size),
    # A cell has no upper side.
    dict(type='RandomFlip', prob=0.75, direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='Pad', size=input_size, pad_val=dict(img=(114, 114, 114))),
    dict(type='YOLOXHSVRandomAug', hue_delta=5, saturation_delta=20, value_delta=20),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=input_size, keep_ratio=False),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]

train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='RepeatDataset',
        times=4,  # an epoch is 4 x 205 images = 102 steps of 8
        dataset=dict(
            type='CocoDataset',
            metainfo=metainfo,
            ann_file='',  # `own_data` sets it, and the folder
            data_prefix=dict(img=''),
            filter_cfg=dict(filter_empty_gt=True, min_size=32),
            pipeline=train_pipeline,
        ),
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CocoDataset',
        metainfo=metainfo,
        ann_file='',
        data_prefix=dict(img=''),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='FastCocoMetric', ann_file='', metric='bbox', prefix='bccd')
test_evaluator = val_evaluator
report_on_training_images = True
