"""The graph of a net after quantisation-aware fine-tuning: integers and their scales, as in ONNX's QDQ form."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from mnv4_mm.engine.qat import ChannelScale, QuantizedNet, RoundedWeights, Rounding, is_rounded, weight_scale


@torch.library.custom_op('mnv4_mm::round_activation', mutates_args=())
def round_activation(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Round a feature map to uint8 and convert it back: QuantizeLinear and DequantizeLinear of ONNX."""
    return torch.fake_quantize_per_tensor_affine(x, scale, zero_point.to(torch.int32), 0, 255)


@round_activation.register_fake
def _(x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op('mnv4_mm::dequantize', mutates_args=())
def dequantize(values: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Convert integers (C', ...) to float with a scale (C',) per channel: DequantizeLinear of ONNX along axis 0."""
    shape = (-1, *[1] * (values.ndim - 1))
    return (values.to(torch.int32) - zero_point.to(torch.int32).view(shape)).float() * scale.view(shape)


@dequantize.register_fake
def _(values: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    return torch.empty_like(values, dtype=torch.float32)


def translations() -> dict[Any, Callable]:
    """Return the ``custom_translation_table`` of ``torch.onnx.export`` for ``round_activation`` and ``dequantize``."""
    from onnxscript import opset18 as op

    def quantize_and_dequantize(x: Any, scale: Any, zero_point: Any) -> Any:
        return op.DequantizeLinear(op.QuantizeLinear(x, scale, zero_point), scale, zero_point)

    def dequantize_channels(values: Any, scale: Any, zero_point: Any) -> Any:
        return op.DequantizeLinear(values, scale, zero_point, axis=0)

    ops = torch.ops.mnv4_mm
    return {ops.round_activation.default: quantize_and_dequantize, ops.dequantize.default: dequantize_channels}


class RoundActivation(nn.Module):
    """A ``Rounding`` whose range is fixed, exported as QuantizeLinear and DequantizeLinear.

    Args:
        rounding: The layer whose scale and zero point are taken over.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, rounding: Rounding) -> None:
        super().__init__()
        self.register_buffer('scale', rounding.scale().clone())
        self.register_buffer('zero_point', rounding.zero_point().to(torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mnv4_mm.round_activation(x, self.scale, self.zero_point)


class Dequantize(nn.Module):
    """Parametrisation that turns stored integers (C', ...) into float.

    Args:
        scale: Scale of each output channel, (C',).
        dtype: Data type of the integers and of their zero points, which are 0.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, scale: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer('scale', scale)
        self.register_buffer('zero_point', torch.zeros(len(scale), dtype=dtype))

    def forward(self, values: Tensor) -> Tensor:
        return torch.ops.mnv4_mm.dequantize(values, self.scale, self.zero_point)


def store_integers(net: QuantizedNet) -> None:
    """Replace rounded weights by int8, the biases of their layers by int32, and roundings by fixed ones, in place.

    The outputs change only by the rounding of the biases. The scale of a bias is the product of the scales of the
    input and of the weights.

    Args:
        net: A net after quantisation-aware fine-tuning.
    """
    graph = net.net
    calls: dict[str, int] = {}
    for node in list(graph.graph.nodes):
        if node.op != 'call_module':
            continue
        target = str(node.target)
        layer: Any = graph.get_submodule(target)
        if is_rounded(layer):
            # Levels that share a convolution differ in the scale of their input, and so in that of the bias.
            node.target = f'{target}_call{calls.get(target, 0)}'
            calls[target] = calls.get(target, 0) + 1
            graph.add_submodule(node.target, _with_integers(layer, _rounding_before(graph, node)))
        elif parametrize.is_parametrized(layer):
            graph.add_submodule(target, _in_float(layer))
    for node in list(graph.graph.nodes):
        if node.op == 'call_module' and isinstance(rounding := graph.get_submodule(str(node.target)), Rounding):
            graph.add_submodule(str(node.target), RoundActivation(rounding))
    graph.delete_all_unused_submodules()
    graph.recompile()


def remove_roundings(net: QuantizedNet) -> None:
    """Remove the roundings of activations in place, which leaves a float net with the rounded weights."""
    graph = net.net
    for node in list(graph.graph.nodes):
        if node.op != 'call_module':
            continue
        layer: Any = graph.get_submodule(str(node.target))
        if isinstance(layer, Rounding):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
        elif parametrize.is_parametrized(layer):
            convolution = _in_float(layer)
            convolution.weight = nn.Parameter(layer.weight.detach(), requires_grad=False)
            graph.add_submodule(str(node.target), convolution)
    graph.delete_all_unused_submodules()
    graph.recompile()


def _with_integers(convolution: nn.Conv2d, rounding: Rounding) -> nn.Conv2d:
    convolution = _in_float(convolution)
    weight, bias = convolution.weight.detach(), convolution.bias
    scale, step = weight_scale(weight), rounding.scale()
    if bias is not None:
        # A channel whose weights are nearly zero: its bias has to fit into int32.
        scale = torch.maximum(scale, bias.detach().abs() / (step * 2**30))
        steps = scale * step
        _store(convolution, 'bias', (bias.detach() / steps).round().to(torch.int32), steps)
    integers = RoundedWeights.integers(weight, scale)
    _store(convolution, 'weight', integers.to(torch.int8), scale)
    return convolution


def _in_float(convolution: Any) -> nn.Conv2d:
    """Return a copy of a convolution with plain parameters, whose weights are not rounded."""
    convolution = copy.deepcopy(convolution)
    given: Any = convolution.parametrizations.weight
    assert isinstance(given[0], ChannelScale)
    weight, bias = given[0](given.original.detach()), convolution.bias
    del convolution.parametrizations
    # Not by `remove_parametrizations`, which also changes the class that the copy shares with the original.
    convolution.__class__ = type(convolution).__bases__[0]
    convolution.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        convolution.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return convolution


def _store(convolution: nn.Conv2d, name: str, integers: Tensor, scale: Tensor) -> None:
    setattr(convolution, name, nn.Parameter(integers, requires_grad=False))
    parametrize.register_parametrization(convolution, name, Dequantize(scale, integers.dtype), unsafe=True)


def _rounding_before(graph: fx.GraphModule, node: fx.Node) -> Rounding:
    """Return the rounding of the values that a convolution reads."""
    before = node.args[0]
    while isinstance(before, fx.Node):
        layer = graph.get_submodule(str(before.target)) if before.op == 'call_module' else None
        if isinstance(layer, Rounding):
            return layer
        before = before.args[0]  # copies values
    raise AssertionError(f'the input of {node.target} is not rounded')
