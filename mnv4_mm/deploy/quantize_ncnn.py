"""Post-training quantisation of ncnn files to 8 bits.

No package has ncnn's own tools for this, ``ncnn2table`` and ``ncnn2int8``. This module writes the format that their
source in Tencent/ncnn (``tools/quantize``) shows. Unlike them, it keeps the weights that stay in float in fp32.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mnv4_mm.deploy.ranges import BINS, Range
from mnv4_mm.deploy.sensitivity import SensitiveLayer, find_layers
from mnv4_mm.errors import UserError

CONVOLUTIONS = ('Convolution', 'ConvolutionDepthWise')
# Layers that copy the values of their inputs, like sensitivity.COPYING_OPS.
COPYING = ('Split', 'ReLU', 'Clip', 'Padding', 'Reshape', 'Permute', 'Concat', 'Slice', 'Crop', 'Flatten', 'Squeeze',
           'ExpandDims', 'Interp')  # fmt: skip
MAGIC = '7767517'
FLOAT32, INT8 = 0, 0x000D4B38  # tags before weights in a .bin
WITH_WEIGHTS = (*CONVOLUTIONS, 'MemoryData', 'BatchNorm', 'LayerNorm')  # kinds of layers whose weights are read
LEVELS = 127
# ncnn computes dense 3x3 convolutions with stride 1 by Winograd's algorithm, whose sums can overflow. This number makes
# that unlikely; ncnn2int8 has it, too.
WINOGRAD_LEVELS = 31
# Numbers of the parameters of a convolution in a .param. Only ConvolutionDepthWise has GROUPS.
OUTPUTS, WIDTH, DILATION, STRIDE, HAS_BIAS, SIZE, GROUPS, QUANTISED, HEIGHT, DILATION_H, STRIDE_H, DYNAMIC = (
    0, 1, 2, 3, 5, 6, 7, 8, 11, 12, 13, 19,
)  # fmt: skip


@dataclass
class Layer:
    """A layer of an ncnn file: a line of the ``.param`` with its part of the ``.bin``.

    Attributes:
        kind: Type of the layer, such as ``Convolution``.
        name: Name of the layer.
        inputs: Names of the blobs that it reads.
        outputs: Names of the blobs that it writes.
        parameters: Values by the numbers that ncnn gives them.
        weights: Weights of a convolution, flat, output channels first; otherwise None.
        rest: Bytes of the ``.bin`` behind the weights, or all bytes of a layer that is not a convolution.
    """

    kind: str
    name: str
    inputs: list[str]
    outputs: list[str]
    parameters: dict[int, str]
    weights: np.ndarray | None = None
    rest: bytes = b''

    def number(self, key: int, default: int = 0) -> int:
        return int(self.parameters.get(key, default))

    @property
    def channels(self) -> np.ndarray:
        """Weights of a convolution, one row for each scale: an output channel, or a group of a depthwise one."""
        assert self.weights is not None
        rows = self.number(GROUPS if self.kind == 'ConvolutionDepthWise' else OUTPUTS)
        return self.weights.reshape(rows, -1)

    @property
    def is_depthwise(self) -> bool:
        return self.kind == 'ConvolutionDepthWise' and self.number(GROUPS) == self.number(OUTPUTS)

    @property
    def levels(self) -> int:
        """Largest absolute value of an 8-bit weight."""
        width, stride, dilation = self.number(WIDTH), self.number(STRIDE, 1), self.number(DILATION, 1)
        sizes = (width, self.number(HEIGHT, width), stride, self.number(STRIDE_H, stride), dilation,
                 self.number(DILATION_H, dilation))  # fmt: skip
        return WINOGRAD_LEVELS if not self.is_depthwise and sizes == (3, 3, 1, 1, 1, 1) else LEVELS


def quantize_ncnn(
    param: Path, batches: Sequence[np.ndarray], sensitive: Sequence[SensitiveLayer], *, plain: bool = False
) -> tuple[int, int]:
    """Quantise the convolutions of an ncnn file in fp32 to int8, in place.

    Weights have a scale per output channel. The input of a convolution has one scale for all channels; ncnn knows no
    zero point. Everything else stays in float, and so do the first convolution, which is sensitive, and depthwise
    convolutions, which are sensitive and were slower in int8 on x86.

    Args:
        param: The ``.param``; the ``.bin`` has the same name with that suffix.
        batches: Inputs made of real images, one image each, for calibration.
        sensitive: Layers that stay in float. Convolutions that read a sensitive output stay in float too.
        plain: Quantise every convolution, over the range from the smallest to the largest value.

    Returns:
        The number of quantised convolutions, and that of all convolutions.

    Raises:
        UserError: A sensitive layer is not in the file, or the file has layers that cannot be read.
    """
    layers = read_layers(param)
    convolutions = [layer for layer in layers if layer.weights is not None]
    chosen = convolutions
    if not plain:
        in_float = {convolutions[0].name, *_sensitive(layers, sensitive)}
        chosen = [layer for layer in convolutions if not layer.is_depthwise and layer.name not in in_float]
    limits = _input_limits(param, [layer.inputs[0] for layer in chosen], batches, least_error=not plain)
    write_layers(param, layers, {layer.name: limits[layer.inputs[0]] for layer in chosen})
    return len(chosen), len(convolutions)


def read_layers(param: Path) -> list[Layer]:
    """Read an ncnn file with weights in fp32.

    Raises:
        UserError: The sizes of the two files do not fit together: a layer is of an unknown kind that has weights.
    """
    content = param.with_suffix('.bin').read_bytes()
    start = 0
    layers: list[Layer] = []

    def unknown() -> UserError:
        kinds = sorted({line.split()[0] for line in lines} - {*WITH_WEIGHTS})
        return UserError(
            f'{param}: int8 for ncnn is not supported for this net: only {", ".join(WITH_WEIGHTS)} may have weights, '
            f'and one of these has some: {", ".join(kinds)}'
        )

    def take(size: int) -> bytes:
        nonlocal start
        start += size
        if start > len(content):
            raise unknown()
        return content[start - size : start]

    lines = param.read_text().splitlines()[2:]
    for line in lines:
        kind, name, inputs, outputs, *words = line.split()
        names, words = words[: int(inputs) + int(outputs)], words[int(inputs) + int(outputs) :]
        parameters = {int(key): value for key, value in (word.split('=', 1) for word in words)}
        layer = Layer(kind, name, names[: int(inputs)], names[int(inputs) :], parameters)
        if kind in CONVOLUTIONS:
            if layer.number(DYNAMIC) or struct.unpack('<I', take(4))[0] != FLOAT32:
                raise UserError(f'{param}: int8 for ncnn needs constant weights in fp32, and those of {name} are not')
            layer.weights = np.frombuffer(take(4 * layer.number(SIZE)), '<f4')
            layer.rest = take(4 * layer.number(OUTPUTS) if layer.number(HAS_BIAS) else 0)
        else:
            layer.rest = take(_stored_bytes(layer))
        layers.append(layer)
    if start != len(content):
        raise unknown()
    return layers


def _stored_bytes(layer: Layer) -> int:
    """Return the size of the weights of a layer that is not a convolution, 0 if it has none."""
    if layer.kind == 'MemoryData':
        return 4 * int(np.prod([max(1, layer.number(key)) for key in (0, 1, 11, 2)]))
    if layer.kind == 'BatchNorm':
        return 16 * layer.number(0)
    if layer.kind == 'LayerNorm':
        return 8 * layer.number(0) * layer.number(2, 1)
    return 0


def write_layers(param: Path, layers: Sequence[Layer], limits: Mapping[str, float]) -> None:
    """Write an ncnn file.

    Args:
        param: The ``.param`` to write.
        layers: The layers.
        limits: Largest absolute value that the 8 bits of the input of a convolution represent, by the name of the
            convolution. Convolutions that are not named stay in float.
    """
    lines, content = [], []
    for layer in layers:
        parameters = dict(layer.parameters)
        if layer.weights is None:
            content.append(layer.rest)
        elif layer.name not in limits:
            content.append(struct.pack('<I', FLOAT32) + layer.weights.tobytes() + layer.rest)
        else:
            # ConvolutionDepthWise: 1 is a scale for each group. Convolution: 2 is what ncnn2int8 writes.
            parameters[QUANTISED] = '1' if layer.kind == 'ConvolutionDepthWise' else '2'
            largest = np.abs(layer.channels).max(1, keepdims=True)
            scales = np.where(largest > 0, np.float32(layer.levels) / np.maximum(largest, 1e-30), 1).astype('<f4')
            scaled = layer.channels * scales
            # Half is rounded away from zero, as ncnn does.
            integers = np.clip(np.trunc(scaled + np.copysign(np.float32(0.5), scaled)), -LEVELS, LEVELS).astype('i1')
            content.append(struct.pack('<I', INT8) + integers.tobytes() + bytes(-integers.size % 4) + layer.rest)
            limit = limits[layer.name]
            content.append(scales.tobytes() + np.array(LEVELS / limit if limit else 1, '<f4').tobytes())
        words = [*layer.inputs, *layer.outputs, *(f'{key}={value}' for key, value in parameters.items())]
        lines.append(f'{layer.kind:<24} {layer.name:<24} {len(layer.inputs)} {len(layer.outputs)} {" ".join(words)}')
    blobs = {name for layer in layers for name in layer.outputs}
    param.write_text('\n'.join([MAGIC, f'{len(layers)} {len(blobs)}', *lines, '']))
    param.with_suffix('.bin').write_bytes(b''.join(content))


def _input_limits(
    param: Path, blobs: Sequence[str], batches: Sequence[np.ndarray], *, least_error: bool
) -> dict[str, float]:
    """Return the largest absolute value of each blob over all images, by the name of the blob.

    If ``least_error`` is True, return the limit with the least mean square error of rounding and clipping instead. The
    net then runs twice on each image, because histograms need the largest value first.
    """
    import ncnn

    net = ncnn.Net()
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = net.opt.use_bf16_storage = False
    net.opt.lightmode = False  # which would free intermediate blobs
    if net.load_param(str(param)) or net.load_model(str(param.with_suffix('.bin'))):
        raise UserError(f'ncnn cannot load {param}')
    names = list(dict.fromkeys(blobs))

    def values() -> Iterator[tuple[str, np.ndarray]]:
        for batch in batches:
            with net.create_extractor() as extractor:
                extractor.set_light_mode(False)
                # The batch must outlive the extractor: ncnn.Mat does not keep it.
                extractor.input('in0', ncnn.Mat(batch[0]))
                for name in names:
                    code, blob = extractor.extract(name)
                    one = np.array(blob)
                    if code or not np.isfinite(one).all():
                        raise UserError(f'{param}: ncnn computes no finite values of {name} for a calibration image')
                    yield name, one

    largest = dict.fromkeys(names, 0.0)
    for name, one in values():
        largest[name] = max(largest[name], float(np.abs(one).max()))
    if not least_error:
        return largest
    ranges = {name: Range(-limit, limit) for name, limit in largest.items() if limit}
    counts = {name: np.zeros(BINS, np.int64) for name in ranges}
    for name, one in values():
        if name in ranges:
            counts[name] += np.histogram(one, BINS, ranges[name])[0]
    return largest | {name: one.least_error(counts[name]).high for name, one in ranges.items()}


def _sensitive(layers: Sequence[Layer], sensitive: Sequence[SensitiveLayer]) -> set[str]:
    """Return the names of sensitive convolutions and of those that read a sensitive output.

    Matrix products are never quantised, so they need not be found.
    """
    weights = {layer.name: np.sort(layer.weights) for layer in layers if layer.weights is not None}
    found: set[str] = set()
    unrounded: set[str] = set()
    for layer in sensitive:
        if layer.weights is None or layer.weights.ndim != 4:
            continue
        names = find_layers(layer, weights, 'the ncnn file')
        found.update(names)
        if layer.output:
            unrounded.update(blob for one in layers if one.name in names for blob in one.outputs)
    for one in layers:
        if unrounded.intersection(one.inputs):
            found.add(one.name)
            if one.kind in COPYING or (one.kind == 'Pooling' and not one.number(0)):  # of the maximum
                unrounded.update(one.outputs)
    return found
