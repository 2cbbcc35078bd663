"""int8 files of ncnn against integer arithmetic in PyTorch."""

import shutil
import struct

import ncnn
import numpy as np
import pytest
import torch
from torch.nn import functional

from mnv4_mm.apis.model import load_model
from mnv4_mm.deploy.difference import difference
from mnv4_mm.deploy.export import export
from mnv4_mm.deploy.graph import reference
from mnv4_mm.deploy.quantize_ncnn import quantize_ncnn, read_layers, write_layers
from mnv4_mm.deploy.sensitivity import SensitiveLayer
from mnv4_mm.errors import UserError
from mnv4_mm.images import read_image
from mnv4_mm.runtime import load
from mnv4_mm.runtime.preprocess import prepare

RNG = np.random.default_rng(0)
# Kind and parameters of a layer, shape of its weights, stride, groups, and the largest 8-bit weight.
POINTWISE = ('Convolution', '0=8 1=1 11=1 2=1 3=1 4=0 5=1 6=64', (8, 8, 1, 1), 1, 1, 127)
# ncnn computes this one by Winograd's algorithm, in which larger weights would overflow.
DENSE = ('Convolution', '0=64 1=3 11=3 2=1 3=1 4=1 5=1 6=36864', (64, 64, 3, 3), 1, 1, 31)
STRIDED = ('Convolution', '0=8 1=3 11=3 2=1 3=2 4=1 5=1 6=576', (8, 8, 3, 3), 2, 1, 127)
WIDE = ('Convolution', '0=8 1=5 11=5 2=1 3=1 4=2 5=1 6=1600', (8, 8, 5, 5), 1, 1, 127)
DEPTHWISE = ('ConvolutionDepthWise', '0=8 1=3 11=3 2=1 3=1 4=1 5=1 6=72 7=8', (8, 1, 3, 3), 1, 8, 127)


def write(path, *kinds):
    """Write a chain of convolutions in fp32, and return their weights and biases."""
    lines, content, tensors = ['Input in0 0 1 in0'], b'', []
    for number, (kind, parameters, shape, *_) in enumerate(kinds):
        last = 'out0' if number == len(kinds) - 1 else f'in{number + 1}'
        lines.append(f'{kind} layer{number} 1 1 in{number} {last} {parameters}')
        weights = RNG.normal(0, 1, shape).astype(np.float32) * 2.0 ** RNG.integers(-3, 3, (shape[0], 1, 1, 1))
        tensors.append((weights.astype(np.float32), RNG.normal(0, 1, shape[0]).astype(np.float32)))
        content += struct.pack('<I', 0) + tensors[-1][0].tobytes() + tensors[-1][1].tobytes()
    path.write_text('\n'.join(['7767517', f'{len(lines)} {len(lines)}', *lines, '']))
    path.with_suffix('.bin').write_bytes(content)
    return tensors


def run(path, image):
    net = ncnn.Net()
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = net.opt.use_bf16_storage = False
    assert net.load_param(str(path)) == 0
    assert net.load_model(str(path.with_suffix('.bin'))) == 0
    with net.create_extractor() as extractor:
        extractor.input('in0', ncnn.Mat(image))
        return np.array(extractor.extract('out0')[1])


def rounded(values):
    """Round half away from zero."""
    return np.sign(values) * np.floor(np.abs(values) + 0.5)


@pytest.mark.parametrize(
    'kind', [POINTWISE, DENSE, STRIDED, WIDE, DEPTHWISE], ids=['pointwise', '3x3', 'stride 2', '5x5', 'depthwise']
)
def test_a_layer_computes_in_integers(kind, tmp_path):
    path = tmp_path / 'net.ncnn.param'
    ((weights, bias),) = write(path, kind)
    weights[3] = 0  # a pruned filter
    content = path.with_suffix('.bin').read_bytes()
    path.with_suffix('.bin').write_bytes(content[:4] + weights.tobytes() + content[4 + weights.nbytes :])
    images = [RNG.uniform(-2, 3, (len(weights), 12, 16)).astype(np.float32) for _ in range(2)]
    in_float = run(path, images[0])
    assert quantize_ncnn(path, [image[None] for image in images], [], plain=True) == (1, 1)
    *_, stride, groups, levels = kind
    scale = 127 / np.abs(images).max()
    scales = levels / np.maximum(np.abs(weights).max((1, 2, 3)), 1e-30)
    sums = functional.conv2d(
        torch.from_numpy(rounded(images[0].astype(np.float64) * scale))[None],
        torch.from_numpy(rounded(weights.astype(np.float64) * scales[:, None, None, None])),
        stride=stride, padding=weights.shape[2] // 2, groups=groups,
    )[0].numpy()  # fmt: skip
    expected = sums / (scale * scales)[:, None, None] + bias[:, None, None]
    found = run(path, images[0])
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    assert 1e-3 < np.abs(found - in_float).max() < 0.1 * np.abs(in_float).max()


def test_a_file_whose_layers_stay_in_float_is_unchanged(tmp_path):
    path = tmp_path / 'net.ncnn.param'
    write(path, STRIDED, DEPTHWISE, POINTWISE)
    image = RNG.uniform(-2, 3, (8, 12, 16)).astype(np.float32)
    content, expected = path.with_suffix('.bin').read_bytes(), run(path, image)
    write_layers(path, read_layers(path), {})
    assert path.with_suffix('.bin').read_bytes() == content
    np.testing.assert_array_equal(run(path, image), expected)


def kinds_in_int8(path):
    return [layer for layer in path.read_text().split() if layer.startswith('8=')]


def test_layers_that_stay_in_float(tmp_path):
    path = tmp_path / 'net.ncnn.param'
    batches = [RNG.uniform(-2, 3, (1, 8, 12, 16)).astype(np.float32)]
    kinds = POINTWISE, DEPTHWISE, POINTWISE, POINTWISE, POINTWISE
    tensors = write(path, *kinds)
    assert quantize_ncnn(path, batches, []) == (3, 5)  # not the first one and the depthwise one
    assert kinds_in_int8(path) == ['8=2'] * 3
    tensors = write(path, *kinds)
    sensitive = SensitiveLayer(tensors[2][0], -1, output=False)
    assert quantize_ncnn(path, batches, [sensitive]) == (2, 5)
    tensors = write(path, *kinds)
    sensitive = SensitiveLayer(tensors[2][0], -1, output=True)  # so that its reader stays in float, too
    assert quantize_ncnn(path, batches, [sensitive, SensitiveLayer(None, 0, output=True)]) == (1, 5)
    write(path, *kinds)
    with pytest.raises(UserError, match=r'weights of shape \(2, 3, 1, 1\) that stays in float is not in the ncnn file'):
        quantize_ncnn(path, batches, [SensitiveLayer(np.ones((2, 3, 1, 1), np.float32), -1, output=False)])


def test_rare_large_values_are_clipped(tmp_path):
    path = tmp_path / 'net.ncnn.param'
    image = RNG.normal(0, 1, (8, 64, 64)).astype(np.float32)
    image[0, 0, 0] = 60
    errors = []
    for plain in (True, False):
        RNG.bit_generator.state = np.random.default_rng(1).bit_generator.state
        write(path, POINTWISE, POINTWISE)
        expected = run(path, image)
        quantize_ncnn(path, [image[None]], [], plain=plain)
        errors.append(float(np.square(run(path, image) - expected).mean()))
    assert errors[1] < 0.5 * errors[0]


def test_an_unknown_layer_with_weights_is_one_line(tmp_path):
    path = tmp_path / 'net.ncnn.param'
    write(path, POINTWISE)
    path.write_text(path.read_text().replace('out0', 'in1') + 'PReLU own 1 1 in1 out0 0=8\n')
    path.with_suffix('.bin').write_bytes(path.with_suffix('.bin').read_bytes() + bytes(32))
    with pytest.raises(UserError, match=r'and one of these has some: Input, PReLU'):
        read_layers(path)


def test_a_segmenter_is_exported(lraspp, tmp_path, photos):
    folder = tmp_path / 'images'
    folder.mkdir()
    for photo in photos[:4]:
        shutil.copy(photo, folder)
    lines = []
    options = dict(size=(64, 96), precision='int8', calibration=str(folder), out_dir=str(tmp_path / 'exported'))
    path = export(str(lraspp), ['ncnn'], log=lines.append, **options)[0]
    assert any('; in ncnn ' in line and line.endswith(', and ranges of least error of its own') for line in lines)
    predictor = load(path)
    batches = [prepare(read_image(photo), predictor.meta.input, predictor.meta.resize)[0] for photo in photos[:2]]
    found = difference(reference(load_model(str(lraspp), device='cpu'), predictor.meta), predictor, batches)
    assert 1e-3 < found.largest < 0.7
