"""Table of timm's published MobileNetV4 weights.

Source: timm ``mobilenetv3.py`` (default_cfgs) and ``results/results-imagenet.csv``; TensorFlow released none
(tensorflow/models#11205). A test compares names, resolution, mean and std with the installed timm.
"""

from typing import NamedTuple

from mnv4_mm.errors import UserError

# Mean and std with which training normalised the images, per RGB channel, for pixels in 0...255.
IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
INCEPTION = ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5))


class Tag(NamedTuple):
    """Published weights of a net.

    Attributes:
        arch: Name of the net, as in ``arch.ARCHS``.
        size: Width and height of the training images in pixels.
        top1: ImageNet-1k top-1 in per cent at ``size``; None for weights with other classes (ImageNet-12k).
        params: Parameters in M, including the classifier of 1,000 classes.
        normalisation: Mean and std, per RGB channel, with which training normalised the images, for pixels in 0...255.
    """

    arch: str
    size: int
    top1: float | None
    params: float
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] = IMAGENET


TAGS: dict[str, Tag] = {
    'mobilenetv4_conv_small_050.e3000_r224_in1k': Tag('conv_s_050', 224, 64.778, 2.24, INCEPTION),
    'mobilenetv4_conv_small.e1200_r224_in1k': Tag('conv_s', 224, 73.450, 3.77),
    'mobilenetv4_conv_small.e2400_r224_in1k': Tag('conv_s', 224, 73.756, 3.77),
    'mobilenetv4_conv_small.e3600_r256_in1k': Tag('conv_s', 256, 74.534, 3.77, INCEPTION),
    'mobilenetv4_conv_medium.e500_r224_in1k': Tag('conv_m', 224, 79.092, 9.72),
    'mobilenetv4_conv_medium.e500_r256_in1k': Tag('conv_m', 256, 79.916, 9.72),
    'mobilenetv4_conv_medium.e250_r384_in12k_ft_in1k': Tag('conv_m', 384, 82.776, 9.72),
    'mobilenetv4_conv_medium.e180_r384_in12k': Tag('conv_m', 384, None, 9.72),
    'mobilenetv4_conv_medium.e180_ad_r384_in12k': Tag('conv_m', 384, None, 9.72),
    'mobilenetv4_conv_medium.e250_r384_in12k': Tag('conv_m', 384, None, 9.72),
    'mobilenetv4_conv_large.e500_r256_in1k': Tag('conv_l', 256, 81.864, 32.59),
    'mobilenetv4_conv_large.e600_r384_in1k': Tag('conv_l', 384, 82.974, 32.59),
    'mobilenetv4_hybrid_medium.e500_r224_in1k': Tag('hybrid_m', 224, 80.432, 11.07),
    'mobilenetv4_hybrid_medium.ix_e550_r256_in1k': Tag('hybrid_m', 256, 81.478, 11.07),
    'mobilenetv4_hybrid_medium.ix_e550_r384_in1k': Tag('hybrid_m', 384, 82.952, 11.07),
    'mobilenetv4_hybrid_medium.e200_r256_in12k_ft_in1k': Tag('hybrid_m', 256, 82.360, 11.07),
    'mobilenetv4_hybrid_medium.e200_r256_in12k': Tag('hybrid_m', 256, None, 11.07),
    'mobilenetv4_hybrid_large.e600_r384_in1k': Tag('hybrid_l', 384, 83.826, 37.76),
    'mobilenetv4_hybrid_large.ix_e600_r384_in1k': Tag('hybrid_l', 384, 83.996, 37.76),
    'mobilenetv4_conv_blur_medium.e500_r224_in1k': Tag('conv_blur_m', 224, 79.446, 9.72),
    'mobilenetv4_conv_aa_large.e600_r384_in1k': Tag('conv_aa_l', 384, 83.264, 32.59),
    'mobilenetv4_conv_aa_large.e230_r384_in12k_ft_in1k': Tag('conv_aa_l', 384, 84.314, 32.59),
    'mobilenetv4_conv_aa_large.e230_r448_in12k_ft_in1k': Tag('conv_aa_l', 448, 84.668, 32.59),
    'mobilenetv4_conv_aa_large.e230_r384_in12k': Tag('conv_aa_l', 384, None, 32.59),
}

# Default weights of each net: trained on ImageNet-1k only and, where several are published, at the paper's resolution
# and with ImageNet mean and std.
DEFAULT_TAGS: dict[str, str] = {
    'conv_s_050': 'mobilenetv4_conv_small_050.e3000_r224_in1k',
    'conv_s': 'mobilenetv4_conv_small.e2400_r224_in1k',
    'conv_m': 'mobilenetv4_conv_medium.e500_r256_in1k',
    'conv_l': 'mobilenetv4_conv_large.e600_r384_in1k',
    'hybrid_m': 'mobilenetv4_hybrid_medium.ix_e550_r256_in1k',
    'hybrid_l': 'mobilenetv4_hybrid_large.ix_e600_r384_in1k',
    'conv_blur_m': 'mobilenetv4_conv_blur_medium.e500_r224_in1k',
    'conv_aa_l': 'mobilenetv4_conv_aa_large.e600_r384_in1k',
}


def tags_of(arch: str | None) -> dict[str, Tag]:
    """Return the published weights of a net, or of all nets, by tag.

    Args:
        arch: Name of a net; None for all nets.

    Raises:
        UserError: No weights of this net are published.
    """
    tags = {name: tag for name, tag in TAGS.items() if arch in (None, tag.arch)}
    if not tags:
        raise UserError(
            f'no weights of {arch!r}; there are weights of {", ".join(sorted({tag.arch for tag in TAGS.values()}))}'
        )
    return tags
