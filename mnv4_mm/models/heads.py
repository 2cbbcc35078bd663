"""Only what upstream lacks or has broken: SSD that predicts, separable RetinaNet, LR-ASPP for pictures of any size."""

from mmdet.models.dense_heads import RetinaSepBNHead, SSDHead
from mmengine.model import bias_init_with_prob, normal_init
from mmengine.registry import MODELS
from mmseg.models.decode_heads import LRASPPHead
from torch import Tensor, nn


@MODELS.register_module()
class SSDLiteHead(SSDHead):
    """mmdet's SSD head, mended.

    ``SSDHead.__init__`` skips its parent's, which makes ``loss_cls``; ``BaseDenseHead`` has read that attribute in
    ``predict`` since mmdet 3.2, so every SSD config dies at its first validation (open-mmlab/mmdetection#11063, #11305,
    #11780). A test fails when upstream has the attribute: then this class can go.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        # Softmax over classes and background, as SSDHead's own loss computes by hand.
        self.loss_cls = MODELS.build(dict(type='mmdet.CrossEntropyLoss', use_sigmoid=False))


@MODELS.register_module()
class SeparableConv2d(nn.Module):
    """Depthwise k x k then pointwise 1x1 convolution, (N, C, H, W) -> (N, C', H', W').

    Nothing stands between the two (TF ``SeparableConv2D``). A drop-in for ``conv_cfg=dict(type='SeparableConv2d')``:
    mmcv's ConvModule and mmdet's FPN ask every convolution, 1x1 ones too, of the same ``conv_cfg``; there it is the
    plain 1x1 convolution, which has nothing to separate.
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
            raise ValueError(
                f'a separable convolution is grouped by its depthwise half; groups must be 1, got {groups}'
            )
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
        """Weight of the 1x1 convolution, which mmcv's and mmengine's initialisers reach for."""
        return self.pointwise.weight

    @property
    def bias(self) -> Tensor | None:
        """Bias of the 1x1 convolution."""
        return self.pointwise.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))


@MODELS.register_module()
class SeparableRetinaHead(RetinaSepBNHead):
    """RetinaNet head of the paper's detector (section 7.2): separable 3x3 convolutions in towers and predictors.

    Towers are shared by the levels, their norms are not. mmdet's head takes the separable towers by ``conv_cfg`` but
    builds its two predictors as plain convolutions.
    """

    def _init_layers(self) -> None:
        super()._init_layers()
        classes = self.num_base_priors * self.cls_out_channels
        self.retina_cls = SeparableConv2d(self.feat_channels, classes, 3, padding=1)
        self.retina_reg = SeparableConv2d(self.feat_channels, self.num_base_priors * 4, 3, padding=1)

    def init_weights(self) -> None:
        # RetinaSepBNHead draws the (shared) pointwise weights; the depthwise ones keep PyTorch's, which preserve scale.
        super().init_weights()
        normal_init(self.retina_cls.pointwise, std=0.01, bias=bias_init_with_prob(0.01))


@MODELS.register_module()
class GlobalLRASPPHead(LRASPPHead):
    """mmseg's LR-ASPP head with a mean over the whole map, as torchvision's, in place of one over 49x49 places.

    mmseg's pool is made for 512x1024 pictures at output stride 8: it fails on maps below 49x49 and sees only a
    corner of others (open-mmlab/mmsegmentation#973). On maps of 49x49 the two are the same; parameters have the
    same names.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.image_pool[0] = nn.AdaptiveAvgPool2d(1)
