"""Nets, starts and seeds of the protocols for GPUs; the configs know where the data is."""

nets = [
    'mnv4_conv_m',
    'mnv4_conv_s',
    'mnv4_hybrid_m',
    'timm:mobilenetv1_100',
    'timm:mobilenetv2_100',
    'timm:mobilenetv3_large_100',
    'timm:repvit_m1_1',
    'timm:fastvit_sa12',
    'timm:resnet18',
]
starts = ['imagenet']
seeds = [0, 1, 2]
needs_data = False
