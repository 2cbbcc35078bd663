"""DeepLabV3+ on MNv4-Conv-M at output stride 16, ADE20K at 512x512, 160k iterations.

    torchrun --nproc_per_node=4 tools/train.py configs/mnv4_deeplabv3plus_ade20k.py --launcher pytorch

Heads, recipe and schedule are those of mmseg's mobilenet-v2-d8_deeplabv3plus_4xb4-160k, at output stride 16 instead of
8. The backbone starts from ImageNet weights; `--backbone` selects the weights with the backbone. A timm net that cannot
be dilated keeps output stride 32, with a warning in the log.
Published: MobileNetV2 at output stride 8, 34.02 mIoU (mmseg).
Cost: 160,000 steps x 16 crops = 2.56 M crops, 127 passes over the 20,210 training images.
mIoU: not run yet.
"""

_base_ = ['_base_/models/deeplabv3plus.py', '_base_/datasets/ade20k.py', '_base_/segmentation_runtime.py']

# ---- settings you may want to change ----
batch_size = 4  # crops per GPU; 4 GPUs x 4 = 16
base_lr = 0.01  # for 16 crops per step; --auto-scale-lr adapts it to your batch size
max_iters = 160_000

# ---- the rest of the recipe ----
model = dict(
    backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='timm://mobilenetv4_conv_medium.e500_r256_in1k'))
)
train_dataloader = dict(batch_size=batch_size)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters // 10)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=base_lr, momentum=0.9, weight_decay=5e-4))
param_scheduler = [dict(type='PolyLR', eta_min=1e-4, power=0.9, begin=0, end=max_iters, by_epoch=False)]
auto_scale_lr = dict(enable=False, base_batch_size=16)
default_hooks = dict(checkpoint=dict(interval=max_iters // 40))
