"""The graph inside an exported file: a trained model from pixels to boxes and scores, or to logits.

The graph has only the parts that all runtimes support. The selection of boxes and the class map are added by targets
that support them, or computed outside the file by ``runtime.results``.
"""

import copy
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from mmdet.models.dense_heads import RetinaHead, RetinaSepBNHead, RTMDetHead, SSDHead
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder, DistancePointBBoxCoder
from mmdet.models.task_modules.prior_generators import SSDAnchorGenerator
from mmseg.models.utils import Upsample
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from mnv4_mm.deploy.calibration import evenly
from mnv4_mm.deploy.equalise import equalise, tensors_of
from mnv4_mm.deploy.qdq import remove_roundings, store_integers
from mnv4_mm.deploy.rounding import RoundedConvolution
from mnv4_mm.engine.qat import quantized_net
from mnv4_mm.errors import UserError
from mnv4_mm.models.layers import MultiQueryAttention, matmul_attention, repeated_attention
from mnv4_mm.runtime.meta import Input, Kind, Meta
from mnv4_mm.runtime.predictor import Predictor

aten = torch.ops.aten
MAX_EQUALISED_IMAGES = 16  # calibration images on which the ranges of channels are measured
HEADS = (SSDHead, RetinaHead, RetinaSepBNHead, RTMDetHead)


class Pixels(nn.Module):
    """Conversion of the input of a file to the input of the net, (N, 3, H, W) float32, normalised.

    Args:
        to: Size, layout and normalisation of the input of the file.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, to: Input) -> None:
        super().__init__()
        self.planar = to.layout == 'NCHW'
        self.normalise = not to.normalise
        self.register_buffer('mean', torch.tensor(to.mean).view(1, 3, 1, 1))
        self.register_buffer('scale', 1 / torch.tensor(to.std).view(1, 3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        x = image if self.planar else image.permute(0, 3, 1, 2)
        return (x.float() - self.mean) * self.scale if self.normalise else x


class ConvolvedPixels(nn.Module):
    """``Pixels`` that normalises by a depthwise 1x1 convolution, an operator that NPUs have in 8 bits.

    The normalised image is an int8 feature map like any other, and padding this map with zeros is exact. Folding the
    normalisation into the first convolution of the net instead would be wrong at the border: that convolution would
    have to pad each channel with its own mean, but has only one padding value for all channels.

    The convolution sees the 3 channels of ``GROUP`` neighbouring pixels as 48 channels. NPUs compute 16 channels or
    more at once, so with 3 channels most of their arithmetic units would be idle.

    Args:
        to: Size, layout and normalisation of the input of the file: pixels (N, H, W, 3), W a multiple of ``GROUP``.
    """

    GROUP = 16
    weight: Tensor
    bias: Tensor

    def __init__(self, to: Input) -> None:
        super().__init__()
        scale = 1 / torch.tensor(to.std)
        self.register_buffer('weight', scale.repeat(self.GROUP).view(-1, 1, 1, 1))
        self.register_buffer('bias', (-torch.tensor(to.mean) * scale).repeat(self.GROUP))

    def forward(self, image: Tensor) -> Tensor:
        count, height, width, _ = image.shape
        x = image.reshape(count, height, width // self.GROUP, -1).permute(0, 3, 1, 2).float()  # (N, 48, H, W / 16)
        x = torch.conv2d(x, self.weight, self.bias, groups=len(self.bias))
        return x.permute(0, 2, 3, 1).reshape(count, height, width, 3).permute(0, 3, 1, 2)


class Detector(nn.Module):
    """A detector without the selection of boxes, for heads with anchors (SSD, RetinaNet) or points (RTMDet).

    Takes a batch of images as ``to`` describes. Returns boxes (N, A, 4) as (x1, y1, x2, y2) in pixels of the input and
    scores (N, A, classes), as mmdet's dense heads compute them.

    Args:
        model: Single-stage detector of mmdet.
        to: Size, layout and normalisation of the input.

    Raises:
        UserError: The head or one of its settings is not supported, or ``to.size`` is None and the head is SSD's.
    """

    priors: Tensor

    def __init__(self, model: Any, to: Input) -> None:
        super().__init__()
        head = model.bbox_head
        self.pixels = Pixels(to)
        self.backbone, self.neck, self.head = model.backbone, getattr(model, 'neck', None) or nn.Identity(), head
        self.generator, self.coder = head.prior_generator, head.bbox_coder
        self.is_anchor = isinstance(self.coder, DeltaXYWHBBoxCoder)
        if not self.is_anchor and not isinstance(self.coder, DistancePointBBoxCoder):
            raise UserError(
                f'boxes of {type(self.coder).__name__} are not exported: only those of DeltaXYWHBBoxCoder and '
                'DistancePointBBoxCoder are'
            )
        if self.is_anchor and self.coder.add_ctr_clamp:
            raise UserError('boxes with add_ctr_clamp (YOLOF) are not exported')
        if to.size is None and isinstance(self.generator, SSDAnchorGenerator):
            raise UserError('--dynamic does not fit SSD, whose anchors are made for one size')
        self.use_sigmoid = head.use_sigmoid_cls
        self.classes = head.cls_out_channels
        if to.size:
            # Priors depend on the size only, so they become a constant of the graph.
            with torch.no_grad():
                outputs = self.head(self.neck(self.backbone(torch.zeros(1, 3, *to.size))))
            if len(outputs) != 2:
                raise UserError(
                    f'{type(head).__name__} has {len(outputs)} outputs for each level; only heads with class scores '
                    'and boxes are exported'
                )
            self.register_buffer('priors', self._priors(outputs[0]))
        self.size = to.size

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = self.pixels(image)
        logits, codes = self.head(self.neck(self.backbone(x)))  # levels of (N, a * classes, h, w), (N, a * 4, h, w)
        priors = self.priors if self.size else self._priors(logits)
        height, width = self.size or x.shape[2:]
        boxes = torch.cat([_flat(code, 4) for code in codes], 1)  # (N, A, 4)
        scores = torch.cat([_flat(level, self.classes) for level in logits], 1)  # (N, A, classes)
        # With softmax the last class is the background.
        scores = scores.sigmoid() if self.use_sigmoid else scores.softmax(-1)[..., :-1]
        return self._decode(priors, boxes, height, width), scores

    def _priors(self, levels: Any) -> Tensor:
        """Return the anchors (A, 4) or points (A, 2) of all levels."""
        return torch.cat(
            [
                self.generator.single_level_grid_priors(level.shape[-2:], i, level.dtype, level.device)
                for i, level in enumerate(levels)
            ]
        )

    def _decode(self, priors: Tensor, codes: Tensor, height: int, width: int) -> Tensor:
        """Decode boxes as ``delta2bbox`` and ``distance2bbox`` of mmdet, without in-place writes.

        Converters turn in-place writes into copies.
        """
        if self.is_anchor:
            means, stds = codes.new_tensor(self.coder.means), codes.new_tensor(self.coder.stds)
            codes = codes * stds + means
            centre, side = (priors[:, :2] + priors[:, 2:]) * 0.5, priors[:, 2:] - priors[:, :2]
            max_log = abs(math.log(16 / 1000))  # mmdet's wh_ratio_clip
            centre = centre + codes[..., :2] * side
            half = codes[..., 2:].clamp(-max_log, max_log).exp() * (side * 0.5)
            low, high = centre - half, centre + half
        else:
            low, high = priors - codes[..., :2], priors + codes[..., 2:]
        if not self.coder.clip_border:
            return torch.cat([low, high], -1)
        columns = [
            corner[..., i : i + 1].clamp(0, side) for corner in (low, high) for i, side in enumerate((width, height))
        ]
        return torch.cat(columns, -1)


def _flat(level: Tensor, channels: int) -> Tensor:
    """Reshape (N, a * channels, h, w) to (N, h * w * a, channels)."""
    return level.permute(0, 2, 3, 1).reshape(level.shape[0], -1, channels)


class Segmenter(nn.Module):
    """A segmenter without its last resize and argmax.

    Takes a batch of images as ``to`` describes. Returns a tuple whose only element is the logits
    (N, classes, H / s, W / s), where s is the output stride.

    Args:
        model: Encoder-decoder of mmseg.
        to: Size, layout and normalisation of the input.
    """

    def __init__(self, model: Any, to: Input) -> None:
        super().__init__()
        self.pixels = Pixels(to)
        self.backbone, self.neck, self.head = (
            model.backbone,
            getattr(model, 'neck', None) or nn.Identity(),
            model.decode_head,
        )

    def forward(self, image: Tensor) -> tuple[Tensor]:
        return (self.head(self.neck(self.backbone(self.pixels(image)))),)


@dataclass(frozen=True)
class Graph:
    """A model ready for conversion.

    Attributes:
        module: The trained net, a ``Detector`` or a ``Segmenter``. Batch norms are not folded.
        meta: Metadata of the file to be exported; ``export.write`` fills in ``files``.
        plain_int8: True if int8 files are quantised without the steps that raise their accuracy.
        calibration: Names of the calibration images of int8 files.
        has_integers: True if the net has been fine-tuned for int8 and ``module`` holds its integer weights and scales,
            which int8 files take over.
    """

    module: nn.Module
    meta: Meta
    plain_int8: bool = False
    calibration: tuple[str, ...] = ()
    has_integers: bool = False

    def example(self) -> Tensor:
        """Return an input of random pixels from 0 to 255, the same in each call, in the layout and dtype of the file.

        The input has one image, or two if the batch size is dynamic: ``torch.export`` would make a batch size of one a
        constant.
        """
        to = self.meta.input
        height, width = to.size or (10 * to.divisor, 12 * to.divisor)
        count = 2 if self.meta.dynamic_batch else 1
        shape = (count, height, width, 3) if to.layout == 'NHWC' else (count, 3, height, width)
        pixels = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0))
        return pixels.to(getattr(torch, to.dtype))

    def output_stride(self) -> int:
        """Return the output stride of the logits of a segmenter, in pixels."""
        image = self.example()
        with torch.no_grad():
            logits = self.module(image)[0]
        return image.shape[1 if self.meta.input.layout == 'NHWC' else 2] // logits.shape[2]

    def program(
        self, calibration: Sequence[np.ndarray] = (), rounded: Sequence[RoundedConvolution] = ()
    ) -> torch.export.ExportedProgram:
        """Return the graph as torch exports it, with norms and layer scales folded.

        If the size is fixed, kernels on maps of 1x1 are cropped (``crop_kernels``).

        Args:
            calibration: Inputs made of real images, one image each, on which channels are equalised for quantisation,
                see ``equalise``. If empty, channels are not equalised.
            rounded: Convolutions whose weights are replaced by rounded ones, and whose biases are corrected. Those that
                are not in the graph are left as they are: ONNX Runtime merges some with the operator behind them.
        """
        shapes = self._dynamic_shapes()
        with torch.no_grad():
            example = (self.example(),)
            # An exported program shares the parameters of its module, and equalising changes them.
            module = copy.deepcopy(self.module) if calibration or rounded else self.module
            program = torch.export.export(module, example, dynamic_shapes=shapes)
            folded = program.module()
            assert isinstance(folded, fx.GraphModule)
            fold_norms(folded)
            fold_scales(folded)
            if calibration:
                equalise(folded, [torch.from_numpy(batch) for batch in evenly(calibration, MAX_EQUALISED_IMAGES)])
            if self.meta.input.size:
                crop_kernels(folded)
            _store_rounded(folded, rounded)
            return torch.export.export(folded, example, dynamic_shapes=shapes)

    def layer_names(self, parameters: Iterable[str]) -> dict[str, str]:
        """Map weights of ``program`` to the layers of ``module`` that they belong to.

        Args:
            parameters: Names of parameters of ``program``.

        Returns:
            The name of the layer in ``module`` by the name of the parameter. Parameters other than weights, such as
            biases, are left out.
        """
        modules = {name.replace('.', '_'): name for name, _ in self.module.named_modules()}
        layers = {}
        for parameter in parameters:
            # fold_norms, fold_scales and crop_kernels name new weights after the layer, with underscores.
            pattern = r'(.+?)(?:_weight)?(?:_folded_\d+)?(?:_scaled_\d+)?(?:_centre_\d+)?'
            new = re.fullmatch(pattern, parameter.replace('.', '_'))
            if new and new[1] in modules:
                layers[parameter] = modules[new[1]]
        return layers

    def _dynamic_shapes(self) -> tuple | None:
        to = self.meta.input
        if to.size:
            return None
        first = 1 if to.layout == 'NHWC' else 2
        # Sizes are multiples of the divisor. min=2: every feature map has at least two positions along each side.
        steps = {first + i: to.divisor * torch.export.Dim(name, min=2, max=256) for i, name in enumerate(('h', 'w'))}
        if self.meta.dynamic_batch:
            steps[0] = torch.export.Dim('images')
        return (steps,)


def _store_rounded(module: fx.GraphModule, rounded: Sequence[RoundedConvolution]) -> None:
    """Replace the weights of convolutions by rounded ones, and shift their biases, in place."""
    tensors = tensors_of(module)
    by_name = {convolution.name: convolution for convolution in rounded}
    stored: set[Any] = set()  # levels of the feature pyramid may share a convolution
    for node in module.graph.nodes:
        if node.target is not torch.ops.aten.conv2d.default:
            continue
        weight, bias = (getattr(argument, 'target', None) for argument in (*node.args, None)[1:3])
        if weight in by_name and weight not in stored:
            tensors[weight].copy_(torch.from_numpy(by_name[weight].rounded))
            # A level whose kernel is cropped shares the bias, but not the weight.
            if bias is not None and bias not in stored:
                tensors[bias].add_(torch.from_numpy(by_name[weight].shift))
            stored.update((weight, bias))


def build_graph(model: Any, meta: Meta, without_scales: bool = False) -> Graph:
    """Build the graph of a trained model.

    Args:
        model: Single-stage detector of mmdet or encoder-decoder of mmseg, on the CPU. It is copied.
        meta: Metadata that ``describe`` derived from this model.
        without_scales: If the model has been fine-tuned for int8, keep its weights in float and drop its trained
            scales. Other models are not affected.

    Returns:
        The graph, with its net in evaluation mode.

    Raises:
        UserError: The head or the size of the input is not supported, see ``Detector``.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False).to(memory_format=torch.contiguous_format)
    replace_layers(model, meta.target)
    net = quantized_net(model)
    has_integers = net is not None and not without_scales
    if net is not None:
        (store_integers if has_integers else remove_roundings)(net)
    module: Any = wrap(model, meta)
    if meta.target == 'litert' and meta.precision == 'int8' and not meta.input.normalise:
        module.pixels = ConvolvedPixels(meta.input)
    return Graph(module.eval(), meta, has_integers=has_integers)


def wrap(model: Any, meta: Meta) -> 'Detector | Segmenter':
    """Return a module that maps a batch as described in ``meta.input`` to raw boxes and scores, or to logits.

    Raises:
        UserError: The head or the size of the input is not supported, see ``Detector``.
    """
    return (Detector if meta.task == 'detection' else Segmenter)(model, meta.input)


def reference(model: Any, meta: Meta) -> Predictor:
    """Return the PyTorch model as a predictor with the input of an exported file.

    Its outputs are raw boxes and scores, or logits, even if the file selects boxes or computes the class map.

    Args:
        model: See ``build_graph``. It is copied.
        meta: Metadata of the file.

    Raises:
        UserError: See ``build_graph``.
    """
    raw_kinds: dict[str, Kind] = {'nms': 'raw', 'class_map': 'logits'}
    meta = replace(meta, kind=raw_kinds.get(meta.kind, meta.kind), target='pytorch')
    module = build_graph(model, meta).module

    def run(batch: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            return [value.numpy() for value in module(torch.from_numpy(batch))]

    return Predictor(meta, run)


class GlobalMean(nn.Module):
    """Global average pooling, (N, C, H, W) to (N, C, 1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True)


def replace_layers(model: nn.Module, target: str) -> None:
    """Replace layers that some converters convert incorrectly by equivalent ones, in place.

    - Attention becomes matrix products. For ``scaled_dot_product_attention`` with one key/value head and several query
      heads, litert-torch silently loses a transpose (docs/litert.md has an example). The same function also splits the
      part of the graph that ExecuTorch can delegate.
    - ``AdaptiveAvgPool2d(1)`` becomes a mean. torch decomposes it into a mean and ``as_strided``, which ncnn
      does not have.
    - mmseg's ``Upsample`` becomes torch's. mmseg's reads the size of a feature map as Python numbers, which become
      constants of the graph even if the input size is dynamic.

    Args:
        model: The model.
        target: Name of the runtime that the model is converted for.
    """
    for module in model.modules():
        if isinstance(module, MultiQueryAttention):
            module.attend = repeated_attention if target == 'litert' else matmul_attention
        elif hasattr(module, 'fused_attn'):  # timm's
            setattr(module, 'fused_attn', False)  # noqa: B010 (for mypy: torch's stubs know tensors and modules only)
        for name, child in module.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d) and child.output_size in (1, (1, 1)):
                setattr(module, name, GlobalMean())
            elif isinstance(child, Upsample):
                setattr(module, name, nn.Upsample(child.size, child.scale_factor, child.mode, child.align_corners))


def fold_norms(module: fx.GraphModule) -> None:
    """Fold each batch norm into the convolution before it, in place.

    A norm is kept if it follows another kind of layer, or if its input has other readers. The convolution of a norm is
    found in the traced graph. If pyramid levels share a convolution but have their own norms, each level gets its own
    folded copy of the weights.
    """
    graph = module.graph
    tensors: dict[Any, Tensor] = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers())

    def values(*nodes: Any) -> list[Any]:
        return [tensors[node.target] if isinstance(node, fx.Node) else node for node in nodes]

    for number, norm in enumerate(list(graph.nodes)):
        if norm.op != 'call_function' or norm.target is not aten.batch_norm.default:
            continue
        conv = norm.args[0]
        if conv.target is not aten.conv2d.default or len(conv.users) > 1:
            continue
        weight, bias = (*conv.args, None)[1:3]
        scale, shift, mean, variance = norm.args[1:5]
        eps = norm.args[7]
        folded = fuse_conv_bn_weights(*values(weight, bias, mean, variance, eps, scale, shift))
        _replace(module, norm, conv, folded, 'folded', number)
    graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()


def fold_scales(module: fx.GraphModule) -> None:
    """Fold each multiplication by one constant per channel, a layer scale, into the convolution before it, in place.

    The optimisers of some converters fold it anyway, others do not. int8 files need the same weights everywhere: the
    layers that stay in float are chosen in ONNX, and found by their weights in other formats. Dropout may be between:
    it does nothing here, and is removed.
    """
    graph = module.graph

    def constant(node: Any) -> Any:
        if isinstance(node, int | float):
            return torch.tensor(float(node))
        if not isinstance(node, fx.Node):
            return None
        if node.op == 'get_attr':
            tensors = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers())
            return tensors.get(str(node.target))
        if node.target in (aten.view.default, aten.reshape.default, aten.unsqueeze.default):
            inner = constant(node.args[0])
            return None if inner is None else node.target(inner, *node.args[1:])
        return None

    for dropout in [node for node in graph.nodes if node.target is aten.dropout.default]:
        dropout.replace_all_uses_with(dropout.args[0])
        graph.erase_node(dropout)
    nodes: list[Any] = list(graph.nodes)
    for number, product in enumerate(nodes):
        if product.target not in (aten.mul.Tensor, aten.mul_.Tensor):
            continue
        conv, factor = product.args
        if getattr(conv, 'target', None) is not aten.conv2d.default:
            conv, factor = factor, conv
        is_conv = getattr(conv, 'target', None) is aten.conv2d.default
        if not is_conv or len(conv.users) > 1:
            continue
        scale, weight, bias = (constant(node) for node in (factor, *(*conv.args, None)[1:3]))
        if scale is None or weight is None or (bias is None) != (len(conv.args) < 3 or conv.args[2] is None):
            continue
        if scale.shape not in ((), (1,), (len(weight), 1, 1), (1, len(weight), 1, 1)):
            continue
        scale = scale.reshape(-1).expand(len(weight))
        scaled = weight * scale.view(-1, 1, 1, 1), None if bias is None else bias * scale
        _replace(module, product, conv, scaled, 'scaled', number)
    graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()


def _replace(
    module: fx.GraphModule, node: fx.Node, conv: Any, tensors: Sequence[Tensor | None], word: str, number: int
) -> None:
    """Replace the operator behind a convolution by new weights of the convolution.

    Args:
        module: The graph.
        node: The operator.
        conv: The convolution.
        tensors: The new weight and bias, None for no bias.
        word: Word in the new names.
        number: Number in the new names, which tells levels of the pyramid that share a layer apart.
    """
    # Named after the layer, as in the list of sensitive layers.
    layer = str(conv.args[1].target).removesuffix('.weight').replace('.', '_')
    new: list[fx.Node | None] = []
    with module.graph.inserting_before(conv):
        for tensor, name in zip(tensors, (f'{layer}_{word}_{number}', f'{layer}_{word}_bias_{number}'), strict=True):
            if tensor is None:
                new.append(None)
                continue
            module.register_parameter(name, nn.Parameter(tensor.detach().clone(), requires_grad=False))
            new.append(module.graph.get_attr(name))
    conv.args = (conv.args[0], *new, *conv.args[3:])
    node.replace_all_uses_with(conv)
    module.graph.erase_node(node)


def crop_kernels(module: fx.GraphModule) -> None:
    """Crop odd kernels with "same" padding on 1x1 feature maps to their centre, in place.

    All other weights of such a kernel are multiplied with padding only.

    OpenCV 4 (4.12 and 4.14) computes depthwise convolutions with padding on such maps wrongly, without an error. In SSD
    this concerns the last level, with the largest anchors.
    """
    graph = module.graph
    tensors: dict[Any, Tensor] = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers())
    for number, conv in enumerate(list(graph.nodes)):
        if conv.op != 'call_function' or conv.target is not aten.conv2d.default:
            continue
        defaults = (None, [1, 1], [0, 0], [1, 1], 1)
        settings: tuple[Any, ...] = (*conv.args[2:], *defaults[len(conv.args) - 2 :])
        bias, stride, padding, dilation, groups = settings
        stored = conv.args[1]
        is_integer = stored.target is torch.ops.mnv4_mm.dequantize.default
        source = stored.args[0] if is_integer else stored
        image, weight = conv.args[0].meta.get('val'), tensors.get(source.target)
        if image is None or weight is None or list(image.shape[2:]) != [1, 1]:
            continue
        sides = weight.shape[2:]
        is_centred = all(
            side > 1 and side % 2 and pad == side // 2 * step
            for side, pad, step in zip(sides, padding, dilation, strict=True)
        )
        if not is_centred:
            continue
        middle = sides[0] // 2, sides[1] // 2
        centre = weight[:, :, middle[0] : middle[0] + 1, middle[1] : middle[1] + 1].detach().clone()
        name = f'{source.target.replace(".", "_")}_centre_{number}'
        module.register_parameter(name, nn.Parameter(centre, requires_grad=False))
        with graph.inserting_before(conv):
            cropped = graph.get_attr(name)
            if is_integer:
                cropped = graph.call_function(stored.target, (cropped, *stored.args[1:]))
            conv.args = (conv.args[0], cropped, bias, stride, [0, 0], [1, 1], groups)
    graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
