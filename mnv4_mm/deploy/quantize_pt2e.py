"""Quantisation of a torch graph to 8 bits, by torchao and ExecuTorch's quantiser for XNNPACK.

The scales of feature maps are measured on calibration images, or are those of a quantisation-aware fine-tuning.
"""

import dataclasses
import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import fx

from mnv4_mm.deploy.equalise import tensors_of
from mnv4_mm.deploy.sensitivity import SensitiveLayer, find_layers
from mnv4_mm.engine.qat import WEIGHT_MAX
from mnv4_mm.errors import UserError

aten = torch.ops.aten
# Smallest scale of weights. XNNPACK's quantiser has 2**-12, with which channels whose weights are all below 0.03 have
# fewer than 127 levels.
MIN_WEIGHT_SCALE = 2**-20
# XNNPACK stores a bias as int32, in units of the scale of the input times that of the weights. Larger values wrap
# around, without an error. ONNX Runtime's quantiser has a limit for the same reason (microsoft/onnxruntime#22020).
BIAS_MAX = 2**30
# Feature maps with a smaller trained scale were always zero. XNNPACK refuses such scales.
NO_SCALE = 2**-100
CONVOLUTIONS = (
    aten.conv2d,
    aten.conv_transpose2d,
    aten.linear,
    aten.matmul,
    aten.bmm,
)
# Of those that clip, XNNPACK computes only these together with a convolution before them, and ReLU.
CLIPS = (aten.relu6, aten.hardtanh, aten.hardtanh_)
# Operators whose output has values of their first input, and zeros.
MOVING_OPS = (
    aten.alias,
    aten.contiguous,
    aten.pad,
    aten.constant_pad_nd,
    aten.reshape,
    aten.view,
    aten.permute,
    aten.transpose,
    aten.slice,
    aten.split,
    aten.chunk,
    aten.unflatten,
    aten.squeeze,
    aten.unsqueeze,
    aten.flatten,
    aten.max_pool2d,
)
# Operators that copy the values of their inputs, like sensitivity.COPYING_OPS.
COPYING_OPS = (
    aten.relu,
    aten.relu_,
    *CLIPS,
    aten.clamp,
    aten.cat,
    aten.upsample_nearest2d,
    aten.upsample_bilinear2d,
    *MOVING_OPS,
)


class Scale(NamedTuple):
    """Rounding of a feature map to int8: the distance between neighbouring values, and the integer of zero."""

    scale: float
    zero_point: int

    @property
    def low(self) -> float:
        """The smallest value."""
        return self.scale * (-128 - self.zero_point)

    @property
    def high(self) -> float:
        """The largest value."""
        return self.scale * (127 - self.zero_point)


def quantize_pt2e(
    program: torch.export.ExportedProgram, batches: Sequence[np.ndarray], sensitive: Sequence[SensitiveLayer]
) -> torch.export.ExportedProgram:
    """Quantise a float net after training.

    The operators between the first and the last convolutions that XNNPACK can compute in int8 are quantised. These are
    convolutions, additions, products and concatenations. Weights have one scale per output channel.
    Feature maps are clipped where that lowers the error.

    Args:
        program: The float net, with one input.
        batches: Inputs made of real images, one image each, for calibration.
        sensitive: Layers that stay in float. Operators that read a sensitive output stay in float too.

    Returns:
        The quantised net, with the same input.

    Raises:
        UserError: A sensitive layer is not in the graph.
    """
    module, example = _module(program)
    prepared = _prepare(module, [*_ends(module), *_sensitive(module, sensitive)])
    with torch.no_grad():
        for batch in batches:
            prepared(torch.from_numpy(batch))
    return _convert(prepared, example)


def trained_pt2e(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Quantise a net that has been fine-tuned for int8, with its trained integers and scales.

    The operators that were rounded in training are quantised, if XNNPACK can compute them in int8. XNNPACK needs equal
    scales for the inputs and the output of some operators, such as concatenations: they get a range that includes the
    trained ones.

    Args:
        program: The net with its roundings, see ``qdq.store_integers``. It has one input.

    Returns:
        The quantised net, with the same input.

    Raises:
        UserError: See ``_set_scales``.
    """
    module, example = _module(program)
    scales, weights = _remove_roundings(module)
    in_float = [node for node in _calls(module) if not _is_trained(node, scales, weights)]
    prepared = _prepare(module, [*_ends(module), *in_float], weight_max=WEIGHT_MAX)
    with torch.no_grad():
        prepared(*example)  # measures weights and constants
    _set_scales(prepared, scales, weights)
    return _convert(prepared, example)


def _module(program: torch.export.ExportedProgram) -> tuple[fx.GraphModule, tuple[Any, ...]]:
    """Return the module of a program, and an input of it."""
    assert program.example_inputs is not None
    module = program.module()
    assert isinstance(module, fx.GraphModule)
    return module, program.example_inputs[0]


def _prepare(module: fx.GraphModule, in_float: Sequence[fx.Node], *, weight_max: int = 127) -> fx.GraphModule:
    """Return a copy of a net that measures the ranges of feature maps and weights when it is called.

    Args:
        module: The net.
        in_float: Operators that stay in float.
        weight_max: Largest integer of a weight.
    """
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e import PerChannelMinMaxObserver
    from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e
    from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

    _unshare(module)
    names = {node.name for node in in_float}  # by name: preparing copies the graph

    class Quantizer(XNNPACKQuantizer):
        def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
            model = super().annotate(model)
            # Its filter (pytorch/executorch#10626) does not apply to concatenations, nor to what copies their values.
            removed: set[fx.Node] = set()
            for node in model.graph.nodes:
                output = getattr(node.meta.get(Q_ANNOTATION_KEY), 'output_qspec', None)
                if node.name in names or getattr(output, 'edge_or_node', None) in removed:
                    node.meta.pop(Q_ANNOTATION_KEY, None)
                    removed.add(node)
            _quantize_after_clips(model)
            return model

    config = get_symmetric_quantization_config(is_per_channel=True, weight_qmin=-weight_max, weight_qmax=weight_max)
    observer = PerChannelMinMaxObserver.with_args(eps=MIN_WEIGHT_SCALE)
    weight = dataclasses.replace(config.weight, observer_or_fake_quant_ctr=observer)
    quantizer = Quantizer().set_global(dataclasses.replace(config, weight=weight))
    quantizer.set_filter_function(lambda node: node.name not in names)
    with torch.no_grad():
        return prepare_pt2e(module, quantizer)


def _unshare(module: fx.GraphModule) -> None:
    """Give each operator weights and biases of its own, in place.

    The quantiser leaves all but one of the convolutions that share their weights in float, and XNNPACK then refuses the
    file.
    """
    tensors = tensors_of(module)
    node: Any
    for node in list(module.graph.nodes):
        if node.op != 'get_attr' or node.target not in tensors:
            continue
        for number, user in enumerate(list(node.users)[1:]):
            name = f'{str(node.target).replace(".", "_")}_copy_{number}'
            module.register_buffer(name, tensors[node.target].detach().clone())
            with module.graph.inserting_before(user):
                copied = module.graph.get_attr(name)
            copied.meta = dict(node.meta)
            user.replace_input_with(node, copied)
    module.recompile()


def _convert(prepared: fx.GraphModule, example: tuple[Any, ...]) -> torch.export.ExportedProgram:
    """Quantise a net with the ranges that it has measured."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    with torch.no_grad():
        _fit_biases(prepared)
        return torch.export.export(convert_pt2e(prepared), example)


def _fit_biases(prepared: fx.GraphModule) -> None:
    """Raise the scales of weights in place where a bias is larger than ``BIAS_MAX``.

    These are channels whose weights are nearly zero.
    """
    for node in _calls(prepared):
        if not _is(node, CONVOLUTIONS) or len(node.args) < 3 or not isinstance(node.args[2], fx.Node):
            continue
        observers = [_observer(prepared, value) for value in node.args[:2]]
        bias = tensors_of(prepared).get(str(node.args[2].target))
        if None in observers or bias is None:
            continue
        step: Any = observers[0].calculate_qparams()[0]
        weights: Any = observers[1]
        weights.max_val = torch.maximum(weights.max_val, weights.quant_max * bias.abs() / (step * BIAS_MAX))


def _observer(prepared: fx.GraphModule, node: Any) -> Any:
    """Return the module that measures the range of a value; None if ``node`` is not a call of one."""
    from torchao.quantization.pt2e import ObserverBase

    module = prepared.get_submodule(str(node.target)) if node.op == 'call_module' else None
    return module if isinstance(module, ObserverBase) else None


def _remove_roundings(module: fx.GraphModule) -> tuple[dict[str, Scale], dict[str, torch.Tensor]]:
    """Replace trained integers by floats and remove the roundings of feature maps, in place.

    Returns:
        The roundings of feature maps by the names of the nodes that compute them, and the scales (C',) of weights and
        biases that were integers, by their new names.
    """
    tensors = tensors_of(module)
    scales: dict[str, Scale] = {}
    weights: dict[str, torch.Tensor] = {}
    for node in _calls(module):
        if node.target is torch.ops.mnv4_mm.round_activation.default:
            value, scale, zero_point = node.args
            # From uint8 to int8.
            scales[value.name] = Scale(float(tensors[scale.target]), int(tensors[zero_point.target]) - 128)
            node.replace_all_uses_with(value)
            module.graph.erase_node(node)
        elif node.target is torch.ops.mnv4_mm.dequantize.default:
            integers, scale, zero_points = (tensors[argument.target] for argument in node.args)
            name = f'_dequantized_{len(weights)}'
            module.register_buffer(name, node.target(integers, scale, zero_points))
            with module.graph.inserting_before(node):
                constant = module.graph.get_attr(name)
            constant.meta = dict(node.meta)
            weights[name] = scale
            node.replace_all_uses_with(constant)
            module.graph.erase_node(node)
        elif _moves(node) and node.args[0].name in scales:
            scales[node.name] = scales[node.args[0].name]
    module.graph.eliminate_dead_code()
    module.recompile()
    return scales, weights


def _moves(node: Any) -> bool:
    return _is(node, MOVING_OPS) or node.target is operator.getitem


def _is_trained(node: Any, scales: Mapping[str, Scale], weights: Mapping[str, torch.Tensor]) -> bool:
    """Return True if an operator was computed in 8 bits in training."""
    clips = (*CLIPS, aten.relu, aten.relu_)
    if _moves(node) or _is(node, clips):
        return True  # the quantiser leaves it in float if its input is
    users = list(node.users)
    output = users[0] if len(users) == 1 and _is(users[0], clips) and node.name not in scales else node
    if output.name not in scales or (_is(node, CONVOLUTIONS) and node.args[1].target not in weights):
        return False
    return all(one.name in scales for one in node.all_input_nodes if one.op != 'get_attr')


def _set_scales(prepared: fx.GraphModule, scales: Mapping[str, Scale], weights: Mapping[str, torch.Tensor]) -> None:
    """Give feature maps and weights their trained scales, in place.

    Args:
        prepared: The net.
        scales: See ``_remove_roundings``.
        weights: See ``_remove_roundings``.

    Raises:
        UserError: A feature map was not rounded in training.
    """
    from torchao.quantization.pt2e import FixedQParamsObserver

    shared: dict[Any, list[Any]] = {}  # several feature maps may share an observer
    node: Any
    for node in prepared.graph.nodes:
        observer = _observer(prepared, node)
        if observer is None:
            continue
        if node.args[0].op != 'get_attr':
            shared.setdefault(observer, []).append(node)
        elif node.args[0].target in weights:
            # Not the measured ones: the largest integer of a channel may be below WEIGHT_MAX.
            observer.max_val = weights[node.args[0].target] * WEIGHT_MAX
            observer.min_val, observer.eps = -observer.max_val, torch.zeros_like(observer.eps)
    for nodes in shared.values():
        trained = [scales[node.args[0].name] for node in nodes if node.args[0].name in scales]
        if not trained:
            raise UserError(f'ExecuTorch quantises {nodes[0].args[0].name}, which was not rounded in training')
        scale, zero_point = _union(trained)
        fixed = FixedQParamsObserver(scale, zero_point, torch.int8, quant_min=-128, quant_max=127)
        for node in nodes:
            prepared.set_submodule(str(node.target), fixed)


def _union(scales: Sequence[Scale]) -> Scale:
    """Return the scale of a range that includes those of all given ones."""
    widest = max(scales)
    if widest.scale < NO_SCALE:
        return Scale(1.0, 0)
    low, high = min(one.low for one in scales), max(one.high for one in scales)
    if (low, high) == (widest.low, widest.high):
        return widest
    scale = (high - low) / 255
    return Scale(scale, round(-128 - low / scale))


def _quantize_after_clips(module: fx.GraphModule) -> None:
    """Quantise the output of ReLU6 instead of that of the convolution before it, in place.

    XNNPACK computes both at once. Its quantiser knows this of ReLU only: it gives the output of ReLU6 the range before
    the clipping, of which ReLU6 leaves a small part of the 256 values.
    """
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation
    from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

    for node in _calls(module):
        annotation, users = node.meta.get(Q_ANNOTATION_KEY), list(node.users)
        if _is(node, CONVOLUTIONS) and annotation and len(users) == 1 and _is(users[0], CLIPS):
            behind = QuantizationAnnotation(output_qspec=annotation.output_qspec, _annotated=True)
            users[0].meta[Q_ANNOTATION_KEY] = behind
            annotation.output_qspec = None


def _calls(module: fx.GraphModule) -> list[Any]:
    return [node for node in module.graph.nodes if node.op == 'call_function']


def _is(node: fx.Node, packets: Sequence[Any]) -> bool:
    return getattr(node.target, 'overloadpacket', None) in packets


def _ends(module: fx.GraphModule) -> list[fx.Node]:
    """Return the operators before the first and after the last convolutions or matrix products."""
    behind: set[fx.Node] = set()
    before: set[fx.Node] = set()
    calls = _calls(module)
    for node in calls:
        if _is(node, CONVOLUTIONS) or behind.intersection(node.all_input_nodes):
            behind.add(node)
    for node in reversed(calls):
        if _is(node, CONVOLUTIONS) or before.intersection(node.users):
            before.add(node)
    return [node for node in calls if node not in behind or node not in before]


def _sensitive(module: fx.GraphModule, layers: Sequence[SensitiveLayer]) -> set[fx.Node]:
    """Return the sensitive layers and all operators that read a sensitive output, also through ``COPYING_OPS``.

    Products of two activations are never quantised, so they need not be found.
    """
    tensors = tensors_of(module)
    weights = {
        node: np.sort(tensors[node.args[1].target].detach().numpy(), axis=None)
        for node in _calls(module)
        if _is(node, CONVOLUTIONS) and isinstance(node.args[1], fx.Node) and node.args[1].target in tensors
    }
    found: set[fx.Node] = set()
    unrounded: set[fx.Node] = set()
    for layer in layers:
        if layer.weights is None:
            continue
        nodes = find_layers(layer, weights, 'the graph')
        found.update(nodes)
        unrounded.update(nodes if layer.output else [])
    for node in _calls(module):
        if unrounded.intersection(node.all_input_nodes):
            found.add(node)
            if _is(node, COPYING_OPS):
                unrounded.add(node)
    return found
