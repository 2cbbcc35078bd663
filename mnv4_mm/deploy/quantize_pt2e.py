"""Post-training quantisation of a torch graph to 8 bits, by torchao and ExecuTorch's quantiser for XNNPACK."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from mnv4_mm.deploy.sensitivity import SensitiveLayer, find_layers

aten = torch.ops.aten
# Smallest scale of weights. XNNPACK's quantiser has 2**-12, with which channels whose weights are all below 0.03 have
# fewer than 127 levels. XNNPACK multiplies sums by a ratio of scales, which must be at least 2**-32.
MIN_WEIGHT_SCALE = 2**-20
MIN_ACTIVATION_SCALE = 2**-12  # as XNNPACK's quantiser has it
CONVOLUTIONS = (
    aten.conv2d,
    aten.conv_transpose2d,
    aten.linear,
    aten.matmul,
    aten.bmm,
)
# Of those that clip, XNNPACK computes only these together with a convolution before them, and ReLU.
CLIPS = (aten.relu6, aten.hardtanh, aten.hardtanh_)
# Operators that copy the values of their inputs, like sensitivity.COPYING_OPS.
COPYING_OPS = (
    aten.relu,
    aten.relu_,
    *CLIPS,
    aten.clamp,
    aten.pad,
    aten.constant_pad_nd,
    aten.reshape,
    aten.view,
    aten.permute,
    aten.transpose,
    aten.cat,
    aten.upsample_nearest2d,
    aten.upsample_bilinear2d,
    aten.slice,
    aten.split,
    aten.squeeze,
    aten.unsqueeze,
    aten.flatten,
    aten.max_pool2d,
)


def quantize_pt2e(
    program: torch.export.ExportedProgram,
    batches: Sequence[np.ndarray],
    sensitive: Sequence[SensitiveLayer],
    *,
    full_ranges: bool = False,
) -> torch.export.ExportedProgram:
    """Quantise the operators between the first and the last convolutions that XNNPACK can compute in int8.

    These are convolutions, additions, products and concatenations. Weights have one scale per output channel.

    Args:
        program: The float net, with one input.
        batches: Inputs made of real images, one image each, for calibration.
        sensitive: Layers that stay in float. Operators that read a sensitive output stay in float too.
        full_ranges: Quantise each feature map over the range from its smallest to its largest value on ``batches``.
            Otherwise the range is clipped where that lowers the error. Nets that have been fine-tuned for int8 were
            trained with full ranges.

    Returns:
        The quantised net, with the same input.

    Raises:
        UserError: A sensitive layer is not in the graph.
    """
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e import MinMaxObserver, PerChannelMinMaxObserver
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    class Quantizer(XNNPACKQuantizer):
        def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
            model = super().annotate(model)
            _quantize_after_clips(model)
            return model

    assert program.example_inputs is not None
    example = program.example_inputs[0]
    module = program.module()
    assert isinstance(module, fx.GraphModule)
    # By name: preparing copies the graph.
    in_float = {node.name for node in (*_ends(module), *_sensitive(module, sensitive))}
    config = get_symmetric_quantization_config(is_per_channel=True)
    observer = PerChannelMinMaxObserver.with_args(eps=MIN_WEIGHT_SCALE)
    weight = dataclasses.replace(config.weight, observer_or_fake_quant_ctr=observer)
    config = dataclasses.replace(config, weight=weight)
    if full_ranges:
        measured = MinMaxObserver.with_args(eps=MIN_ACTIVATION_SCALE)
        activation = dataclasses.replace(config.input_activation, observer_or_fake_quant_ctr=measured)
        config = dataclasses.replace(config, input_activation=activation, output_activation=activation)
    quantizer = Quantizer().set_global(config)
    quantizer.set_filter_function(lambda node: node.name not in in_float)
    with torch.no_grad():
        prepared = prepare_pt2e(module, quantizer)
        for batch in batches:
            prepared(torch.from_numpy(batch))
        return torch.export.export(convert_pt2e(prepared), example)


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


def _calls(module: fx.GraphModule) -> list[fx.Node]:
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
    tensors: dict[Any, torch.Tensor] = dict(module.named_parameters(remove_duplicate=False))
    tensors |= dict(module.named_buffers())
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
