"""RTMDet on MNv4-Conv-S at 640x640, COCO 2017: the detector for the highest AP.

    torchrun --nproc_per_node=8 tools/train.py configs/mnv4_rtmdet_coco.py --launcher pytorch

Neck, head and recipe are those of mmdet's rtmdet_tiny_8xb32-300e (41.1 AP with its CSPNeXt-tiny trained on ImageNet).
The paper's detector is mnv4_retinanet_coco.
Cost: 117,266 / 256 = 459 steps per epoch, 137,700 in all.
AP: not run yet.
"""

_base_ = ['_base_/models/rtmdet.py', '_base_/datasets/coco.py', '_base_/default_runtime.py']

# ---- settings you may want to change ----
batch_size = 32  # images per GPU; 8 GPUs x 32 = 256
base_lr = 0.004  # for 256 images per step
max_epochs = 300
input_size = (640, 640)  # width, height
plain_epochs = 20  # last epochs, without mosaic and mix-up

# ---- the rest of the recipe ----
pad_value = dict(img=(114, 114, 114))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='CachedMosaic', img_scale=input_size, pad_val=114.0, max_cached_images=20, random_pop=False),
    dict(type='RandomResize', scale=(1280, 1280), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=input_size),
    dict(type='YOLOXHSVRandomAug'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='Pad', size=input_size, pad_val=pad_value),
    dict(
        type='CachedMixUp',
        img_scale=input_size,
        ratio_range=(1.0, 1.0),
        max_cached_images=10,
        random_pop=False,
        pad_val=(114, 114, 114),
        prob=0.5,
    ),
    dict(type='PackDetInputs'),
]
plain_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomResize', scale=input_size, ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=input_size),
    dict(type='YOLOXHSVRandomAug'),
    dict(type='RandomFlip', prob=0.5),
    dict(type='Pad', size=input_size, pad_val=pad_value),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=input_size, keep_ratio=True),
    dict(type='Pad', size=input_size, pad_val=pad_value),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(
    batch_size=batch_size, num_workers=10, batch_sampler=None, dataset=dict(pipeline=train_pipeline)
)
val_dataloader = dict(batch_size=5, num_workers=10, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(proposal_nums=(100, 1, 10))
test_evaluator = val_evaluator

train_cfg = dict(
    type='EpochBasedTrainLoop',
    max_epochs=max_epochs,
    val_interval=10,
    dynamic_intervals=[(max_epochs - plain_epochs, 1)],
)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=base_lr, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0, bias_decay_mult=0, bypass_duplicate=True),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-5, by_epoch=False, begin=0, end=1000),
    dict(
        type='CosineAnnealingLR',
        eta_min=base_lr * 0.05,
        begin=max_epochs // 2,
        end=max_epochs,
        T_max=max_epochs // 2,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
custom_hooks = [
    dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.0002, update_buffers=True, priority=49),
    dict(type='PipelineSwitchHook', switch_epoch=max_epochs - plain_epochs, switch_pipeline=plain_pipeline),
]
default_hooks = dict(checkpoint=dict(interval=10))
auto_scale_lr = dict(enable=False, base_batch_size=256)
