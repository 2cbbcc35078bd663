"""ADE20K (SceneParse150) in data/ade/ADEChallengeData2016 at 512x512, with the pipeline of mmseg's config.

In the masks, 0 is unlabelled and 1...150 are the classes. The data set converts them to 255 and 0...149
(reduce_zero_label).
"""

data_root = 'data/ade/ADEChallengeData2016/'
input_size = (512, 512)  # width, height of a training crop

train_pipeline = [
    # Reads image and mask and applies mmseg's RandomResize, RandomCrop, RandomFlip and PhotoMetricDistortion.
    dict(
        type='SegAugmentation',
        scale=(2048, 512),
        ratio_range=(0.5, 2.0),
        crop_size=input_size[::-1],
        cat_max_ratio=0.75,
        flip_prob=0.5,
    ),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(2048, 512), keep_ratio=True),
    # Otherwise the sizes of the feature maps are rounded up and the class map is distorted when it is resized back.
    dict(type='ResizeToMultiple', size_divisor=32),
    # After Resize, so that predictions are compared in pixels of the original image.
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]

train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='ADE20KDataset',
        data_root=data_root,
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ADE20KDataset',
        data_root=data_root,
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='ExactIoUMetric', prefix='ade20k')
test_evaluator = val_evaluator
