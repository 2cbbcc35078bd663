"""Quantisation-aware fine-tuning: in training, a net rounds weights and activations as its exported int8 file does.

``quantize_model`` replaces backbone, neck and head of a model by one graph in which batch norms are folded into
convolutions, the weights of convolutions are rounded, and ``Rounding`` layers round the activations. Losses, decoding
and evaluation stay those of mmdet and mmseg. The roundings are at the places where post-training quantisation
(``deploy.quantize``) has them. The gradients of roundings are those of ``torch.fake_quantize_per_tensor_affine``: 1, or
0 for values that are clipped (straight-through estimator).
"""

import copy
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce, get_world_size
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import HOOKS, OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.runner import Runner
from mmseg.models.utils import Upsample
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mnv4_mm.errors import UserError
from mnv4_mm.models.layers import BlurPool, LayerScale, MultiQueryAttention, matmul_attention

NAME = 'qat'  # key of the config
ACTIVATION_MAX = 255  # uint8
# 7 bits, as ``deploy.quantize`` has them: x86 without VNNI adds two products of 8 bits in 16 bits, which saturates.
WEIGHT_MAX = 64
# Share of the range of the current batch in the moving average of a ``Rounding``.
MOMENTUM = 0.01
PROBE_SIZE = 128  # pixels; every net has feature maps for it

_PRODUCTS = (operator.matmul, torch.matmul)
_SUMS = (operator.add, operator.iadd, torch.add, operator.mul, operator.imul, torch.mul)
_RESIZES = (F.interpolate, torch.cat)
_CLIPS = (nn.ReLU, nn.ReLU6, nn.Hardtanh)
# Functions and methods that copy values: their output is rounded if their input is.
_COPIES = (operator.getitem, torch.flatten, torch.permute, torch.reshape, torch.split, torch.transpose)
_COPYING_METHODS = {'chunk', 'contiguous', 'flatten', 'permute', 'reshape', 'split', 'transpose', 'unflatten', 'view'}


class Rounding(nn.Module):
    """Layer that rounds a feature map to 256 equidistant values from ``low`` to ``high`` (fake quantisation to uint8).

    Values outside this range are clipped. In training mode, the range is an exponential moving average of the ranges of
    the batches. The range includes zero, and the 256 values are shifted by at most half a step so that zero is one of
    them. Padding is therefore exact.

    Attributes:
        low: Lower end of the range, a scalar of at most 0; initially 0.
        high: Upper end of the range, a scalar of at least 0; initially 0.
    """

    low: Tensor
    high: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer('low', torch.zeros(()))
        self.register_buffer('high', torch.zeros(()))

    def scale(self) -> Tensor:
        """Return the quantisation scale, i.e. the distance between neighbouring values, as a scalar."""
        return ((self.high - self.low) / ACTIVATION_MAX).clamp_min(torch.finfo(torch.float32).tiny * 2**10)

    def zero_point(self) -> Tensor:
        """Return the zero point, i.e. the uint8 value that stands for zero, as an int32 scalar."""
        return (-self.low / self.scale()).round().clamp(0, ACTIVATION_MAX).to(torch.int32)

    def measured_range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the range (low, high) of a feature map as scalars, extended to include zero.

        The range of this layer is not changed.
        """
        low, high = x.detach().float().aminmax()
        return low.clamp_max(0), high.clamp_min(0)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            low, high = self.measured_range(x)
            self.low.lerp_(low, MOMENTUM)
            self.high.lerp_(high, MOMENTUM)
        return torch.fake_quantize_per_tensor_affine(x, self.scale(), self.zero_point(), 0, ACTIVATION_MAX)


class ChannelScale(nn.Module):
    """Parametrisation of a weight or bias (C', ...) as a trained tensor times a fixed power of two per output channel.

    A step of Adam has about the size of the learning rate, whatever the size of the weight. Folding a norm or a layer
    scale leaves channels with tiny weights, down to 1e-8, which one step would overwrite. The trained tensor has the
    size of newly initialised weights. The product is exact in float. A step of SGD changes the weights of a channel by
    the square of its factor times as much as without this parametrisation, as it did before the folding.

    Args:
        factor: The powers of two, (C',).
    """

    factor: Tensor

    def __init__(self, factor: Tensor) -> None:
        super().__init__()
        self.register_buffer('factor', factor)

    def _scale(self, values: Tensor) -> Tensor:
        return self.factor.view(-1, *[1] * (values.ndim - 1))

    def forward(self, original: Tensor) -> Tensor:
        return original * self._scale(original)

    def right_inverse(self, value: Tensor) -> Tensor:
        return value / self._scale(value)


def rescale_for_training(convolution: nn.Conv2d) -> None:
    """Parametrise the weight and bias of a convolution by a ``ChannelScale``, in place.

    The trained weights of each channel then have about the root mean square of newly initialised ones. The outputs do
    not change. Channels without weights stay zero.
    """
    weight, bias = convolution.weight.detach(), convolution.bias
    size_of_new = weight[0].numel() ** -0.5
    factor = _power_of_two(weight.flatten(1).square().mean(1).sqrt() / size_of_new)
    parametrize.register_parametrization(convolution, 'weight', ChannelScale(factor))
    if bias is not None:
        # A bias can be much larger than the weights of its channel.
        larger = torch.maximum(factor, _power_of_two(bias.detach().abs()))
        parametrize.register_parametrization(convolution, 'bias', ChannelScale(larger))


def _power_of_two(values: Tensor) -> Tensor:
    """Return the nearest powers of two from 2^-60 to 2^60; the smallest one for zero."""
    return values.clamp(2**-60, 2**60).log2().round().exp2()


class RoundedWeights(nn.Module):
    """Parametrisation that rounds weights (C', ...) to integers times a scale per output channel (fake quantisation).

    The integers are from -64 to 64. The scale of a channel makes its largest absolute weight 64, see ``weight_scale``.
    """

    def forward(self, weight: Tensor) -> Tensor:
        scale = weight_scale(weight.detach())
        zeros = torch.zeros_like(scale, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, scale, zeros, 0, -WEIGHT_MAX, WEIGHT_MAX)

    @staticmethod
    def integers(weight: Tensor, scale: Tensor) -> Tensor:
        """Return the quantised weights as integers from -64 to 64, in the floating-point type of the weights.

        Args:
            weight: Weights (C', ...), not rounded.
            scale: Scale of each output channel, (C',).
        """
        steps = weight / scale.view(-1, *[1] * (weight.ndim - 1))
        return steps.round().clamp(-WEIGHT_MAX, WEIGHT_MAX)


def weight_scale(weight: Tensor) -> Tensor:
    """Return the quantisation scale of each output channel, (C',): its largest absolute weight divided by 64.

    Args:
        weight: Weights (C', ...), not rounded.
    """
    return (weight.abs().flatten(1).amax(1) / WEIGHT_MAX).clamp_min(torch.finfo(torch.float32).tiny * 2**10)


class QuantizedNet(nn.Module):
    """Backbone, neck and head as one graph with roundings, which returns the outputs of the head.

    The input is a batch of normalised images, (N, 3, H, W). Batch norms that could not be folded into a convolution
    stay in evaluation mode, so that training does not change their running statistics.

    Args:
        graph: The graph with its roundings.
        layers: Names of the convolutions and matrix products of the graph, in the order of execution. A convolution has
            the name of its module. If the module is called several times, ``#1``, ``#2``, ... is appended from the
            second call on. Matrix products are named ``product#0``, ``product#1``, ...

    Attributes:
        layers: See the argument.
    """

    def __init__(self, graph: fx.GraphModule, layers: Sequence[str]) -> None:
        super().__init__()
        self.net = graph
        self.layers = tuple(layers)

    def forward(self, images: Tensor) -> Any:
        return self.net(images)

    def train(self, mode: bool = True) -> 'QuantizedNet':
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
        return self

    def roundings(self) -> list[Rounding]:
        """Return the layers that round activations."""
        return [module for module in self.modules() if isinstance(module, Rounding)]


class _Net(nn.Module):
    """Backbone, neck and head of a model; the parts are named as in a graph for export."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.neck = getattr(model, 'neck', None)
        self.head = _head(model)

    def forward(self, images: Tensor) -> Any:
        maps = self.backbone(images)
        # Without a layer between them, the head gets a tuple of fx's proxies, not one proxy of a tuple.
        return self.head.forward(maps if self.neck is None else self.neck(maps))


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        leaves = (nn.Conv2d, _BatchNorm, LayerScale, Upsample)
        return isinstance(m, leaves) or super().is_leaf_module(m, module_qualified_name)


def quantize_model(model: Any, settings: Mapping[str, Any]) -> Any:
    """Replace backbone, neck and head of a model by a ``QuantizedNet``, in place.

    The model can be used as before. Its backbone, the ``QuantizedNet``, returns the outputs of the head, and the head
    passes them on to its loss and its decoding. Dropout, drop path and an auxiliary head are left out. The ranges of
    the roundings are zero until ``calibrate`` is called or a checkpoint is loaded.

    Args:
        model: Single-stage detector of mmdet or encoder-decoder of mmseg.
        settings: ``qat`` of a config, with two lists of names of ``QuantizedNet.layers``. The layers in ``in_float``
            are not quantised. The layers in ``unrounded`` are a part of ``in_float``; their outputs are not rounded
            either, so that the operations that read them stay in float as well.

    Returns:
        ``model``.

    Raises:
        UserError: The net cannot be captured as a graph, or it has no layer with one of these names.
    """
    graph, layers = _capture(model)
    names = list(layers.values())
    unknown = [name for key in ('in_float', 'unrounded') for name in settings[key] if name not in names]
    if unknown:
        raise UserError(f'the net has no layer {unknown[0]}: the checkpoint was made from another one')
    in_float = _float_nodes(graph.graph, layers, settings['in_float'], settings['unrounded'])
    _insert_roundings(graph, in_float)
    for node, name in layers.items():
        if node.op == 'call_module':
            convolution: Any = graph.get_submodule(str(node.target))
            if not parametrize.is_parametrized(convolution):  # levels may share it
                rescale_for_training(convolution)
            if name not in settings['in_float'] and not is_rounded(convolution):
                parametrize.register_parametrization(convolution, 'weight', RoundedWeights())
    graph.recompile()
    head = _head(model)
    model.backbone, model.neck = QuantizedNet(graph, names), None
    if hasattr(model, 'auxiliary_head'):
        model.auxiliary_head = None
    for name, child in list(head.named_children()):
        if next(child.parameters(), None) is not None:
            delattr(head, name)
    head.forward = _pass_on
    return model.train(model.training)


def is_rounded(layer: Any) -> bool:
    """Return True if the weights of a layer are rounded."""
    return parametrize.is_parametrized(layer, 'weight') and any(
        isinstance(one, RoundedWeights) for one in layer.parametrizations.weight
    )


def layer_names(model: Any) -> list[str]:
    """Return the names of the convolutions and matrix products of a float model, as in ``QuantizedNet.layers``.

    Raises:
        UserError: The net cannot be captured as a graph.
    """
    return list(_capture(copy.deepcopy(model))[1].values())


def quantized_net(model: Any) -> QuantizedNet | None:
    """Return the ``QuantizedNet`` of a model; None if ``quantize_model`` was not applied to the model."""
    net = getattr(model, 'backbone', None)
    return net if isinstance(net, QuantizedNet) else None


def calibrate(model: Any, batches: Iterable[Tensor]) -> None:
    """Extend the ranges of all roundings to the smallest and the largest value that they read in batches of images.

    The ranges of a new ``QuantizedNet`` are zero, so that their values after this call depend on the batches only.
    Weights are rounded during this call, activations are not. The ``QuantizedNet`` is left in evaluation mode.

    Args:
        model: A model that ``quantize_model`` returned.
        batches: Images (N, 3, H, W), normalised.
    """
    net = quantized_net(model)
    assert net is not None
    handles = [rounding.register_forward_hook(_widen) for rounding in net.roundings()]
    try:
        with torch.no_grad():
            for images in batches:
                net.eval()(images)
    finally:
        for handle in handles:
            handle.remove()


def _widen(rounding: Rounding, inputs: tuple[Tensor], _: Tensor) -> Tensor:
    low, high = rounding.measured_range(inputs[0])
    rounding.low.copy_(torch.minimum(rounding.low, low))
    rounding.high.copy_(torch.maximum(rounding.high, high))
    return inputs[0]


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class ParametrizedOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's constructor of optimizer wrappers, made to recognise the parameters of parametrised convolutions.

    mmengine chooses their settings by the type of the module and the name of the parameter, as with
    ``bias_decay_mult``. torch moves the weight of a parametrised convolution to ``parametrizations.weight.original``.
    """

    def add_params(
        self, params: list[dict], module: nn.Module, prefix: str = '', is_dcn_module: int | float | None = None
    ) -> None:
        if isinstance(module, nn.Conv2d) and parametrize.is_parametrized(module):
            plain = nn.Conv2d(module.in_channels, module.out_channels, 1, groups=module.groups, device='meta')
            plain.bias = None
            parametrized: Any = module.parametrizations
            for name, one in parametrized.items():
                plain.register_parameter(name, one.original)
            module = plain
        super().add_params(params, module, prefix, is_dcn_module)


@HOOKS.register_module()
class RangesHook(Hook):
    """Average the ranges of activations over all processes after each step, so that every process rounds alike."""

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        if get_world_size() == 1:
            return
        net = quantized_net(runner.model.module if is_model_wrapper(runner.model) else runner.model)
        assert net is not None
        ranges = [value for rounding in net.roundings() for value in (rounding.low, rounding.high)]
        means = torch.stack(ranges)
        all_reduce(means, 'mean')
        for value, mean in zip(ranges, means, strict=True):
            value.copy_(mean)


def _pass_on(outputs: Any) -> Any:
    return outputs


def _head(model: Any) -> Any:
    head = getattr(model, 'bbox_head', None)
    return model.decode_head if head is None else head


def _capture(model: Any) -> tuple[fx.GraphModule, dict[fx.Node, str]]:
    """Capture backbone, neck and head of a model, in evaluation mode, and fold norms and layer scales.

    Returns:
        The graph, and the names of its convolutions and matrix products.
    """
    net = _Net(model).eval()
    for module in list(net.modules()):
        if isinstance(module, MultiQueryAttention):
            module.attend = matmul_attention
        for name, child in module.named_children():
            if isinstance(child, BlurPool):
                setattr(module, name, _as_convolution(child))
    try:
        graph = fx.GraphModule(net, _Tracer().trace(net))
    # The forward functions of other packages can raise anything when they get fx's proxies.
    except Exception as error:
        raise UserError(f'--qat cannot capture this net as a graph: {" ".join(str(error).split())[:300]}') from error
    _drop_identities(graph)
    _fold(graph)
    layers: dict[fx.Node, str] = {}
    products = 0
    for node in graph.graph.nodes:
        if _is_convolution(graph, node):
            calls = sum(name.partition('#')[0] == node.target for name in layers.values())
            layers[node] = f'{node.target}#{calls}' if calls else str(node.target)
        elif node.target in _PRODUCTS:
            layers[node] = f'product#{products}'
            products += 1
    return graph, layers


def _as_convolution(blur: BlurPool) -> nn.Conv2d:
    channels = len(blur.filt)
    convolution = nn.Conv2d(channels, channels, 3, 2, 1, groups=channels, bias=False)
    convolution.weight = nn.Parameter(blur.filt.clone(), requires_grad=False)
    return convolution


def _is_convolution(graph: fx.GraphModule, node: fx.Node) -> bool:
    return _is_module(graph, node, nn.Conv2d)


def _is_module(graph: fx.GraphModule, node: Any, kinds: Any) -> bool:
    if not isinstance(node, fx.Node) or node.op != 'call_module':
        return False
    return isinstance(graph.get_submodule(str(node.target)), kinds)


def _drop_identities(graph: fx.GraphModule) -> None:
    """Remove layers that do nothing in evaluation mode, and conversions to channels-last layout."""
    for node in list(graph.graph.nodes):
        is_conversion = node.op == 'call_method' and node.target == 'contiguous' and 'memory_format' in node.kwargs
        if is_conversion or _is_module(graph, node, (nn.Identity, nn.Dropout, nn.Dropout2d)):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)


def _fold(graph: fx.GraphModule) -> None:
    """Fold batch norms and layer scales into the convolutions before them.

    If levels of a feature pyramid share a convolution but have norms of their own, each level gets a copy of the
    convolution.
    """
    folded: set[str] = set()
    for node in list(graph.graph.nodes):
        is_scale = _is_module(graph, node, LayerScale)
        if not is_scale and not _is_module(graph, node, _BatchNorm):
            continue
        before = node.args[0]
        if not _is_convolution(graph, before) or len(before.users) > 1:
            continue
        convolution, layer = (graph.get_submodule(str(one.target)) for one in (before, node))
        assert isinstance(convolution, nn.Conv2d)
        if is_scale:
            convolution = copy.deepcopy(convolution)
            assert isinstance(layer, LayerScale)
            gamma = layer.gamma.detach()
            convolution.weight.data.mul_(gamma.view(-1, 1, 1, 1))
            if convolution.bias is not None:
                convolution.bias.data.mul_(gamma)
        else:
            assert isinstance(layer, _BatchNorm)
            convolution = fuse_conv_bn_eval(convolution, layer)
        name = str(before.target)
        calls = [one for one in graph.graph.nodes if one.op == 'call_module' and one.target == name]
        if len(calls) > 1:  # shared by levels
            number = sum(one.startswith(f'{name}_level') for one in folded)
            name = f'{name}_level{number}'
        folded.add(name)
        graph.add_submodule(name, convolution.requires_grad_())
        before.target = name
        # timm's norms may contain their activation.
        activation = getattr(layer, 'act', None)
        if isinstance(activation, nn.Module) and not isinstance(activation, nn.Identity):
            node.target = f'{node.target}.act'
        else:
            node.replace_all_uses_with(before)
            graph.graph.erase_node(node)
    graph.delete_all_unused_submodules()
    graph.recompile()


def _float_nodes(
    graph: fx.Graph, layers: Mapping[fx.Node, str], in_float: Sequence[str], unrounded: Sequence[str]
) -> set[fx.Node]:
    """Return the nodes that stay in float because of sensitive layers, by the rule of ``sensitivity.nodes_in_float``.

    Nodes that read an unrounded output stay in float as well, directly or through nodes that copy values.
    """
    nodes = {node for node, name in layers.items() if name in in_float}
    values: set[fx.Node] = set()
    module: Any = graph.owning_module
    for node in graph.nodes:
        if layers.get(node) in unrounded:
            values.add(node)
        elif values.intersection(node.all_input_nodes):
            nodes.add(node)
            copying = (*_RESIZES, F.max_pool2d, F.pad)
            copying_modules = (*_CLIPS, Upsample, nn.Upsample, nn.MaxPool2d, nn.ZeroPad2d)
            if _copies(node) or node.target in copying or _is_module(module, node, copying_modules):
                values.add(node)
    return nodes


def _copies(node: fx.Node) -> bool:
    return node.target in _COPIES or (node.op == 'call_method' and node.target in _COPYING_METHODS)


def _insert_roundings(graph: fx.GraphModule, in_float: set[fx.Node]) -> None:
    """Insert a ``Rounding`` after each feature map that an operation in 8 bits reads or writes.

    Args:
        graph: The graph.
        in_float: Operations that stay in float.
    """
    nodes = list(graph.graph.nodes)
    features = _features(graph)
    inside = _between_convolutions(graph, nodes)

    def in_8_bits(node: fx.Node) -> bool:
        """Return True for operations that runtimes compute in 8 bits."""
        if node in in_float or node not in inside or node not in features:
            return False
        is_operation = node.target in (*_PRODUCTS, *_SUMS, *_RESIZES) or _is_convolution(graph, node)
        return is_operation or _is_module(graph, node, (Upsample, nn.Upsample))

    def is_clip(node: fx.Node) -> bool:
        return _is_module(graph, node, _CLIPS) or node.target in (F.relu, torch.relu)

    rounded: set[fx.Node] = set()  # including copies of rounded values
    to_round = []
    for node in nodes:
        if node not in features:
            continue
        inputs = [one for one in node.all_input_nodes if one in features]
        if _copies(node) and inputs and rounded.issuperset(inputs):
            rounded.add(node)  # already has the values of its input
            continue
        readers = list(node.users)
        if in_8_bits(node) and len(readers) == 1 and is_clip(readers[0]):
            continue  # rounded after the ReLU
        behind_operation = is_clip(node) and in_8_bits(inputs[0]) and len(inputs[0].users) == 1
        if in_8_bits(node) or behind_operation or any(in_8_bits(reader) for reader in readers):
            rounded.add(node)
            to_round.append(node)
    for number, node in enumerate(to_round):
        name = f'rounding.{number}_{str(node.target).replace(".", "_") if node.op == "call_module" else node.name}'
        graph.add_submodule(name, Rounding())
        with graph.graph.inserting_after(node):
            new = graph.graph.call_module(name, (node,))
        node.replace_all_uses_with(new, delete_user_cb=lambda user, new=new: user is not new)
    graph.graph.lint()
    graph.recompile()


def _features(graph: fx.GraphModule) -> set[fx.Node]:
    """Return the nodes whose value is a tensor of floating point that depends on the images."""
    found: set[fx.Node] = set()

    class Interpreter(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor) and value.is_floating_point():
                if n.op == 'placeholder' or found.intersection(n.all_input_nodes):
                    found.add(n)
            elif isinstance(value, tuple | list) and found.intersection(n.all_input_nodes) and n.op != 'output':
                found.update({n} if all(isinstance(part, Tensor) for part in value) else ())
            return value

    parameter = next(graph.parameters())
    with torch.no_grad():
        Interpreter(graph).run(torch.zeros(1, 3, PROBE_SIZE, PROBE_SIZE, device=parameter.device))
    return found


def _between_convolutions(graph: fx.GraphModule, nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """Return the convolutions and matrix products, and the nodes between the first and the last of them."""

    def connected(order: Iterable[fx.Node], neighbours: Callable[[fx.Node], Iterable[fx.Node]]) -> set[fx.Node]:
        found: set[fx.Node] = set()
        for node in order:
            is_layer = _is_convolution(graph, node) or node.target in _PRODUCTS
            if is_layer or found.intersection(neighbours(node)):
                found.add(node)
        return found

    behind = connected(nodes, lambda node: node.all_input_nodes)
    before = connected(reversed(nodes), lambda node: node.users)
    return behind & before
