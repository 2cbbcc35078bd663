"""Heads that are missing or broken in mmdet and mmseg: SSDLite, separable RetinaNet, LR-ASPP for any image size."""

from mmdet.models.dense_heads import RetinaSepBNHead, SSDHead
from mmengine.model import bias_init_with_prob, normal_init
from mmengine.registry import MODELS
from mmseg.models.decode_heads import LRASPPHead
from torch import Tensor, nn


@MODELS.register_module()
class SSDLiteHead(SSDHead):
    """mmdet's SSD head with the attribute ``loss_cls``, which ``predict`` needs.

    ``SSDHead.__init__`` skips the constructor of its parent, which creates ``loss_cls``. ``BaseDenseHead.predict`` has
    read that attribute since mmdet 3.2, so that every SSD config fails at its first validation
    (open-mmlab/mmdetection#11063, #11305, #11780). A test fails once mmdet has fixed this; then this class can be
    removed.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        # Softmax over the classes and the background, which SSDHead computes directly in its loss.
        self.loss_cls = MODELS.build(dict(type='mmdet.CrossEntropyLoss', use_sigmoid=False))


@MODELS.register_module()
class SeparableConv2d(nn.Module):
    """Depthwise k x k convolution followed by a pointwise 1x1 convolution, without norm or activation in between.

    Like TF's ``SeparableConv2D``, it has a bias only in the pointwise convolution. Configs select this class by
    ``conv_cfg=dict(type='SeparableConv2d')``. mmcv's ConvModule and mmdet's FPN pass the same ``conv_cfg`` to all their
    convolutions; therefore a SeparableConv2d of kernel size 1 is a plain 1x1 convolution.

    Raises:
        ValueError: ``groups`` is not 1.
    """

    # Read by mmcv's ConvModule.
    transposed = False
    output_padding = (0, 0)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if groups != 1:
            raise ValueError(f'groups must be 1, got {groups}: the depthwise convolution has one group per channel')
        if kernel_size == 1:
            self.depthwise: nn.Module = nn.Identity()
            self.pointwise = nn.Conv2d(in_channels, out_channels, 1, stride, bias=bias)
        else:
            self.depthwise = nn.Conv2d(
                in_channels, in_channels, kernel_size, stride, padding, dilation, groups=in_channels, bias=False
            )
            self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=bias)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = (kernel_size, kernel_size)
        self.stride = (stride, stride)
        self.padding = (padding, padding)
        self.dilation = (dilation, dilation)
        self.groups = groups

    @property
    def weight(self) -> Tensor:
        """Weight of the 1x1 convolution, (C', C, 1, 1), which the initialisers of mmcv and mmengine access."""
        return self.pointwise.weight

    @property
    def bias(self) -> Tensor | None:
        """Bias of the 1x1 convolution, (C',); None with ``bias=False``."""
        return self.pointwise.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C', H', W')."""
        return self.pointwise(self.depthwise(x))


@MODELS.register_module()
class SeparableRetinaHead(RetinaSepBNHead):
    """RetinaNet head of the paper's detector (section 7.2), with separable 3x3 convolutions in towers and predictors.

    All levels share the convolutions of the towers, but each level has its own norm layers. The two predictors,
    which are plain convolutions in mmdet's head, are always separable here. The towers become separable by
    ``conv_cfg=dict(type='SeparableConv2d')``, as in mmdet's head.
    """

    def _init_layers(self) -> None:
        super()._init_layers()
        classes = self.num_base_priors * self.cls_out_channels
        self.retina_cls = SeparableConv2d(self.feat_channels, classes, 3, padding=1)
        self.retina_reg = SeparableConv2d(self.feat_channels, self.num_base_priors * 4, 3, padding=1)

    def init_weights(self) -> None:
        # RetinaSepBNHead initialises the pointwise weights. Depthwise weights keep PyTorch's default, which preserves
        # the scale of the activations.
        super().init_weights()
        normal_init(self.retina_cls.pointwise, std=0.01, bias=bias_init_with_prob(0.01))


@MODELS.register_module()
class GlobalLRASPPHead(LRASPPHead):
    """mmseg's LR-ASPP head with global average pooling, as in torchvision, instead of pooling over 49x49 positions.

    mmseg's pooling is made for 512x1024 images at output stride 8: it fails on feature maps smaller than 49x49 and
    ignores part of larger ones (open-mmlab/mmsegmentation#973). On feature maps of 49x49 both heads are equal, and
    their parameters have the same names.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.image_pool[0] = nn.AdaptiveAvgPool2d(1)
