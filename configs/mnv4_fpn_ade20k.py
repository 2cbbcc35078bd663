"""Semantic FPN on MNv4-Conv-M, ADE20K at 512x512, 40k iterations of 32 crops: the common transfer benchmark.

    torchrun --nproc_per_node=8 tools/train.py configs/mnv4_fpn_ade20k.py --launcher pytorch

Model, schedule and test sizes are those of mmseg's fpn_poolformer_s12_8xb4-40k, with which results of PoolFormer and
later mobile backbones are published. As there, the backbone starts from ImageNet weights; `--backbone` selects the
weights with the backbone.
Published mIoU: PoolFormer-S12 37.2 (36.68 in mmseg), FastViT-SA12 38.0, EfficientFormer-L1 38.9, RepViT-M1.1 40.6,
iFormer-M 42.4, ResNet18 32.9, ResNet50 36.7, CPUBone-B0/B1/B2 37.9/39.2/42.1, RepViT-M1.5 43.6.
Cost: 40,000 steps x 32 crops = 1.28 M crops, 63 passes over the 20,210 training images.
mIoU: not run yet.
"""

_base_ = ['_base_/models/fpn.py', '_base_/datasets/ade20k.py', '_base_/segmentation_runtime.py']

# ---- settings you may want to change ----
batch_size = 4  # crops per GPU; 8 GPUs x 4 = 32
base_lr = 2e-4  # for 32 crops per step; --auto-scale-lr adapts it to your batch size
max_iters = 40_000

# ---- the rest of the recipe ----
model = dict(
    backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='timm://mobilenetv4_conv_medium.e500_r256_in1k'))
)
train_dataloader = dict(batch_size=batch_size)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters // 10)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=base_lr, weight_decay=1e-4))
param_scheduler = [dict(type='PolyLR', eta_min=0.0, power=0.9, begin=0, end=max_iters, by_epoch=False)]
auto_scale_lr = dict(enable=False, base_batch_size=32)
default_hooks = dict(checkpoint=dict(interval=max_iters // 40))
