"""Cross-layer equalisation: rescale the channels between layers to similar ranges, before quantisation.

A feature map is rounded with one step for all of its channels, so channels that are much smaller than the largest one
are lost. If channel c of the layer that writes it is divided by s[c], and the weights that read it are multiplied by
s[c], the net computes the same, because ReLU and linear layers commute with positive factors (Nagel et al., arXiv
1906.04721). The factors are powers of two, so the float results are equal to the last bit. As in SmoothQuant (arXiv
2211.10438), they are chosen from the ranges on real images.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

aten = torch.ops.aten
# Operators on one feature map that commute with a positive factor per channel.
HOMOGENEOUS = (
    aten.relu.default,
    aten.relu_.default,
    aten.avg_pool2d.default,
    aten.max_pool2d.default,
    aten.dropout.default,
)
MAX_OCTAVES = 12  # the largest factor is 2**12: far from the limits of the exponent, in fp16 too


class Junction(NamedTuple):
    """Connected feature maps whose channels have to be rescaled by the same factors.

    Only convolutions and batch norms write and read these feature maps. Usually a junction is one feature map between
    two convolutions. A shortcut adds feature maps of several blocks, which then belong to one junction.

    Attributes:
        writers: The layers that write the feature maps.
        values: Nodes that the readers take as their input, after activations and additions.
        readers: The layers that read the feature maps.
        channels: Number of channels.
    """

    writers: tuple[fx.Node, ...]
    values: tuple[fx.Node, ...]
    readers: tuple[fx.Node, ...]
    channels: int


def equalise(module: fx.GraphModule, batches: Sequence[Tensor]) -> int:
    """Equalise the ranges of channels between layers, in place. The outputs of the net stay the same.

    Args:
        module: Graph of aten operators that ``torch.export`` captured in evaluation mode. Batch norms may be folded.
        batches: Inputs of the graph made of real images, on which the ranges are measured.

    Returns:
        Number of ``Junction``s, groups of connected feature maps, that were rescaled.
    """
    tensors = tensors_of(module)
    junctions = list(find_junctions(module))
    ranges = _channel_ranges(module, [value for junction in junctions for value in junction.values], batches)
    rescaled = 0
    # The factors of one junction do not change the values at another one, so their order does not matter.
    for junction in junctions:
        largest = torch.stack([ranges[value] for value in junction.values]).amax(0)
        dense = [tensors[_names(node)['weight']] for node in junction.readers if _is_dense(node)]
        factors = _factors(largest, dense)
        if (factors != 1).any():
            rescale(junction, factors, tensors)
            rescaled += 1
    return rescaled


def rescale(junction: Junction, factors: Tensor, tensors: Mapping[Any, Tensor]) -> None:
    """Divide the channels of feature maps by factors, and multiply the weights that read them by the same, in place.

    Args:
        junction: The feature maps.
        factors: Positive factor of each channel, (C,).
        tensors: Parameters and buffers of the graph by name, see ``tensors_of``.
    """
    rows = factors.view(-1, 1, 1, 1)
    with torch.no_grad():
        for writer in junction.writers:
            names = _names(writer)
            tensors[names['weight']].div_(rows if _is_convolution(writer) else factors)
            if 'bias' in names:
                tensors[names['bias']].div_(factors)
        for reader in junction.readers:
            names = _names(reader)
            if not _is_convolution(reader):
                tensors[names['mean']].div_(factors)
                tensors[names['weight']].mul_(factors)
            else:
                tensors[names['weight']].mul_(factors.view(1, -1, 1, 1) if _is_dense(reader) else rows)


def find_junctions(module: fx.GraphModule) -> Iterator[Junction]:
    """Yield the feature maps whose channels can be rescaled, in the order of the graph.

    Feature maps of layers whose weights are used more than once, as by levels of a feature pyramid, are left out.
    """
    layers = [node for node in module.graph.nodes if _is_convolution(node) or _is_norm(node)]
    uses = Counter(name for node in layers for name in _names(node).values())
    done: set[fx.Node] = set()
    for node in layers:
        junction = None if node in done else _junction_of(node)
        if junction is None:
            continue
        done.update(junction.writers)
        # Levels of a pyramid that share weights would need the same factors.
        if all(uses[name] == 1 for layer in (*junction.writers, *junction.readers) for name in _names(layer).values()):
            yield junction


def tensors_of(module: fx.GraphModule) -> dict[Any, Tensor]:
    """Return the parameters and buffers of a graph by name."""
    return dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers())


def _junction_of(writer: fx.Node) -> Junction | None:
    """Return the junction that a layer writes; None if anything but convolutions and norms writes or reads it."""
    pending, joined = [writer], {writer}
    writers: dict[fx.Node, None] = {}  # dictionaries, because sets have no order
    values: dict[fx.Node, None] = {}
    readers: dict[fx.Node, None] = {}
    while pending:
        node = pending.pop()
        neighbours: list[fx.Node] = []
        if _is_convolution(node) or _is_norm(node):
            writers[node] = None
        elif node.target in HOMOGENEOUS:
            neighbours.append(node.args[0])  # type: ignore[arg-type]
        elif _is_sum(node):
            neighbours += node.args[:2]  # type: ignore[arg-type]
        else:
            return None
        for user in node.users:
            if _reads(user, node):
                values[node] = readers[user] = None
            else:
                neighbours.append(user)
        pending += [neighbour for neighbour in neighbours if neighbour not in joined]
        joined.update(neighbours)
    if not readers:
        return None
    return Junction(tuple(writers), tuple(values), tuple(readers), writer.meta['val'].shape[1])


def _channel_ranges(
    module: fx.GraphModule, nodes: Sequence[fx.Node], batches: Sequence[Tensor]
) -> dict[fx.Node, Tensor]:
    """Return the largest absolute value of each channel, (C,), of the values of nodes over batches."""
    ranges: dict[fx.Node, Tensor] = {}
    measured = set(nodes)

    class Recorder(fx.Interpreter):
        """Records the ranges while it runs the graph."""

        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n in measured:
                largest = value.abs().amax((0, 2, 3))
                ranges[n] = torch.maximum(ranges[n], largest) if n in ranges else largest
            return value

    recorder = Recorder(module)
    with torch.no_grad():
        for batch in batches:
            recorder.run(batch)
    return ranges


def _factors(ranges: Tensor, dense: Sequence[Tensor]) -> Tensor:
    """Return the factor of each channel, (C,), a power of two.

    The weights of a convolution have one scale per output channel. In depthwise convolutions and norms, that is one per
    channel of the feature map, so only the ranges of the feature map matter. In other convolutions, the weights of all
    input channels share a scale, so the factors distribute the spread over weights and feature map.

    Args:
        ranges: Largest absolute value of each channel of the feature map, (C,).
        dense: Weights of the convolutions of one group that read it, (C', C, kh, kw) each.
    """
    octaves = ranges.log2()
    if dense:
        octaves = (octaves - torch.stack([weight.abs().amax((0, 2, 3)) for weight in dense]).amax(0).log2()) / 2
    finite = octaves.isfinite()  # a channel that is always zero, or that no weight reads, keeps its factor of 1
    if not finite.any():
        return torch.ones_like(ranges)
    octaves = (octaves - octaves[finite].median()).round().clamp(-MAX_OCTAVES, MAX_OCTAVES)
    return octaves.where(finite, 0).exp2()


def _is_convolution(node: fx.Node) -> bool:
    return node.target is aten.conv2d.default


def _is_norm(node: fx.Node) -> bool:
    return node.target is aten.batch_norm.default and all(isinstance(arg, fx.Node) for arg in node.args[1:4])


def _is_dense(node: fx.Node) -> bool:
    return _is_convolution(node) and _groups(node) == 1


def _is_sum(node: fx.Node) -> bool:
    """Return True for the sum of two feature maps of equal shape."""
    if node.target not in (aten.add.Tensor, aten.add_.Tensor) or node.kwargs:
        return False
    shapes = [arg.meta['val'].shape if isinstance(arg, fx.Node) else None for arg in node.args]
    return len(shapes) == 2 and shapes[0] == shapes[1]


def _reads(node: fx.Node, value: fx.Node) -> bool:
    """Return True if a node is a norm or a convolution, with one group or depthwise, of a value."""
    if not (_is_convolution(node) or _is_norm(node)) or node.args[0] is not value:
        return False
    return _is_norm(node) or _groups(node) in (1, value.meta['val'].shape[1])


def _groups(node: fx.Node) -> Any:
    return node.args[6] if len(node.args) > 6 else 1


def _names(node: fx.Node) -> dict[str, Any]:
    """Return the names of the parameters and of the running mean of a convolution or norm."""
    arguments = dict(
        zip(('weight', 'bias', 'mean'), node.args[1:4] if _is_norm(node) else node.args[1:3], strict=False)
    )
    return {role: argument.target for role, argument in arguments.items() if isinstance(argument, fx.Node)}
