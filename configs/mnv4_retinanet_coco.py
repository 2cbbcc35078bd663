"""The paper's detector: RetinaNet with separable convolutions on MNv4-Conv-M at 384x384, COCO 2017.

The paper (arXiv 2404.10518, section 7.2, table 7) reports 32.6 AP with Conv-M, and 34.0 with Hybrid-M
(`--backbone mnv4_hybrid_m`).

    torchrun --nproc_per_node=8 tools/train.py configs/mnv4_retinanet_coco.py --launcher pytorch --auto-scale-lr

The paper specifies 600 epochs, batch size 2048, Adam, L2 regularisation 3e-5, a cosine schedule with 24 epochs of
warm-up, flip, scale jitter, RandAugment without shear and rotation, and stochastic depth 0.2. It does not specify the
learning rate, the range of scales, RandAugment's operations and magnitude, which parameters have no weight decay, or
whether training starts from ImageNet weights (here: from scratch). These are marked "ours" below and in the model's
file.
Cost: 117,266 / 2048 = 58 steps per epoch, 34,800 in all; 4.95 GMACs per image for the forward pass.
AP: not run yet.
"""

_base_ = ['_base_/models/retinanet-separable.py', '_base_/datasets/coco.py', '_base_/default_runtime.py']

# ---- settings you may want to change ----
batch_size = 32  # images per GPU; the paper's 2048 are 64 x 32
base_lr = 4e-3  # for 2048 images per step; ours: the paper tuned it per model without publishing it
max_epochs = 600
input_size = (384, 384)  # width, height

# ---- the rest of the recipe ----
model = dict(backbone=dict(drop_path_rate=0.2))
# RandAugment without shear and rotation, which "deteriorate small-object AP". Ours: the list, one operation per image.
colour_ops = [
    [dict(type=name)]
    for name in (
        'AutoContrast',
        'Equalize',
        'Posterize',
        'Solarize',
        'SolarizeAdd',
        'Color',
        'Contrast',
        'Brightness',
        'Sharpness',
    )
]
move_ops = [[dict(type='TranslateX', img_border_value=114)], [dict(type='TranslateY', img_border_value=114)]]
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='RandAugment', aug_space=colour_ops + move_ops, aug_num=1),
    # Ours: the range of TF Model Garden's mobile RetinaNets.
    dict(type='RandomResize', scale=input_size, ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=input_size),
    dict(type='FilterAnnotations', min_gt_bbox_wh=(1, 1)),
    dict(type='Pad', size=input_size, pad_val=dict(img=(114, 114, 114))),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=input_size, keep_ratio=True),
    dict(type='Pad', size=input_size, pad_val=dict(img=(114, 114, 114))),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(batch_size=batch_size, num_workers=8, batch_sampler=None, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=8, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=10)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='Adam', lr=base_lr, weight_decay=3e-5),  # Adam's weight_decay is the L2 term of the paper
    # Ours: no weight decay for norms and biases. The towers, shared by all levels, have several names.
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, bypass_duplicate=True),
    clip_grad=dict(max_norm=10, norm_type=2),  # ours
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=True, begin=0, end=24, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        begin=24,
        end=max_epochs,
        T_max=max_epochs - 24,
        by_epoch=True,
        eta_min=0,
        convert_to_iter_based=True,
    ),
]
auto_scale_lr = dict(enable=False, base_batch_size=2048)
