"""LR-ASPP on MNv4-Conv-S, ADE20K at 512x512, 160k iterations: a segmentation model for phones.

    python tools/train.py configs/mnv4_lraspp_ade20k.py
    torchrun --nproc_per_node=4 tools/train.py configs/mnv4_lraspp_ade20k.py --launcher pytorch

Recipe: mmseg's schedule_160k with 16 crops per step, with which its MobileNetV2 results on ADE20K are published. The
backbone starts from ImageNet weights; `--backbone` selects the weights with the backbone.
Published mIoU on ADE20K: LR-ASPP MobileNetV3-L 33.10 (3.20 M, PaddleSeg), TopFormer-T 34.6 (1.4 M), SeaFormer-T 36.5,
PP-MobileSeg-T 36.39 (1.61 M). mmseg has published LR-ASPP on Cityscapes only.
Cost: 160,000 steps x 16 crops = 2.56 M crops, 127 passes over the 20,210 training images.
mIoU: not run yet.
"""

_base_ = ['_base_/models/lraspp.py', '_base_/datasets/ade20k.py', '_base_/segmentation_runtime.py']

# ---- settings you may want to change ----
batch_size = 4  # crops per GPU; 4 GPUs x 4 = 16
base_lr = 0.01  # for 16 crops per step; --auto-scale-lr adapts it to your batch size
max_iters = 160_000

# ---- the rest of the recipe ----
model = dict(
    backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='timm://mobilenetv4_conv_small.e2400_r224_in1k'))
)
train_dataloader = dict(batch_size=batch_size)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters // 10)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=base_lr, momentum=0.9, weight_decay=5e-4))
param_scheduler = [dict(type='PolyLR', eta_min=1e-4, power=0.9, begin=0, end=max_iters, by_epoch=False)]
auto_scale_lr = dict(enable=False, base_batch_size=16)
default_hooks = dict(checkpoint=dict(interval=max_iters // 40))
