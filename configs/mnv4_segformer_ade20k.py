"""SegFormer's all-MLP head on MNv4-Conv-M, ADE20K at 512x512, 160k iterations.

    torchrun --nproc_per_node=8 tools/train.py configs/mnv4_segformer_ade20k.py --launcher pytorch

Head, recipe and schedule are those of mmseg's segformer_mit-b0_8xb2-160k. The backbone starts from ImageNet weights;
`--backbone` selects the weights with the backbone.
Published mIoU: SegFormer-B0 37.41 (3.8 M), -B1 40.97 (13.7 M) in mmseg; SegNeXt-T 41.4 (4 M) and EfficientViT-B1 42.84
(4.8 M) with heads of their own.
Cost: 160,000 steps x 16 crops = 2.56 M crops, 127 passes over the 20,210 training images.
mIoU: not run yet.
"""

_base_ = ['_base_/models/segformer.py', '_base_/datasets/ade20k.py', '_base_/segmentation_runtime.py']

# ---- settings you may want to change ----
batch_size = 2  # crops per GPU; 8 GPUs x 2 = 16
base_lr = 6e-5  # for 16 crops per step, ten times that in the head; --auto-scale-lr adapts it to your batch size
max_iters = 160_000

# ---- the rest of the recipe ----
model = dict(
    backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='timm://mobilenetv4_conv_medium.e500_r256_in1k'))
)
train_dataloader = dict(batch_size=batch_size)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters // 10)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=base_lr, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(norm_decay_mult=0.0, custom_keys={'decode_head': dict(lr_mult=10.0)}),
)
warm_up = 1500
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=warm_up),
    dict(type='PolyLR', eta_min=0.0, power=1.0, begin=warm_up, end=max_iters, by_epoch=False),
]
auto_scale_lr = dict(enable=False, base_batch_size=16)
default_hooks = dict(checkpoint=dict(interval=max_iters // 40))
