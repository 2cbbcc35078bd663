"""Published results on CamVid, and frames that are resampled together."""

block = 10  # frames of a drive
published = [
    dict(
        name='ENet',
        value='51.3 mIoU',
        protocol='test, whole images of 480x360, from scratch; trained on which images was not checked',
        source='the comparison in the README of CGNet',
    ),
    dict(
        name='CGNet',
        value='65.6 mIoU',
        protocol='test, whole images of 480x360, trained on train and val, from scratch',
        source='its README',
    ),
]
