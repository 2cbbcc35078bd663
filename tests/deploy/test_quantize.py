"""Quantisation to 8 bits: layers that stay in float, sensitivity of layers, and accuracy of a real net."""

import gc
import json
import logging
import shutil
import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from mnv4_mm.apis.model import load_model
from mnv4_mm.deploy.describe import describe
from mnv4_mm.deploy.difference import difference
from mnv4_mm.deploy.export import export
from mnv4_mm.deploy.graph import build_graph, reference
from mnv4_mm.deploy.quantize import QuantizedModel, quantize_onnx
from mnv4_mm.deploy.quiet import coremltools, without_telemetry
from mnv4_mm.deploy.rounding import round_adaptively
from mnv4_mm.deploy.sensitivity import (
    MAX_FLOAT_SHARE,
    LayerSensitivity,
    QuantizationNoise,
    SensitiveLayer,
    float_candidates,
)
from mnv4_mm.deploy.targets import TARGETS, coreml
from mnv4_mm.deploy.targets.onnx import float_program
from mnv4_mm.errors import UserError
from mnv4_mm.images import read_image
from mnv4_mm.runtime import load
from mnv4_mm.runtime.meta import read_meta
from mnv4_mm.runtime.preprocess import prepare

QUANTISED = ('QuantizeLinear', 'DequantizeLinear')


def noise_of(*images):
    noise = QuantizationNoise()
    for values in images:
        noise.add(values, values + 1)
    return noise


def test_noise_is_measured_for_each_channel():
    rng = np.random.default_rng(0)
    values = rng.uniform(-1, 1, (4, 10_000)).astype(np.float32)
    # 256 steps of a uniform signal: 20 log10(255).
    assert noise_of(values).rounding_db() == pytest.approx(20 * np.log10(255), abs=0.1)
    assert noise_of(values).total_db() == pytest.approx(10 * np.log10(1 / 3), abs=0.1)
    values[0] *= 1000  # now the range of the others is within one step
    assert noise_of(values).rounding_db() == pytest.approx(-10 * np.log10(3 / 4), abs=0.1)
    # Two images with half of the values each have the same noise as one.
    assert noise_of(values[:, :3000], values[:, 3000:]).rounding_db() == pytest.approx(noise_of(values).rounding_db())
    assert noise_of(np.zeros((2, 5), np.float32)).rounding_db() == np.inf
    constant = np.full((2, 5), 0.3, np.float32)  # a constant channel has no signal to lose
    constant[1] = np.arange(5)
    assert noise_of(constant).rounding_db() > 40


@pytest.fixture(scope='module')
def sensitive_onnx(sensitive_net):
    net, batches = sensitive_net
    example = (torch.from_numpy(batches[0]),)
    program = torch.onnx.export(net, example, input_names=['image'], output_names=['y'], dynamo=True, verbose=False)
    return program.model_proto


def run(model, batch):
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {'image': batch})[0]


def test_a_sensitive_layer_is_found_and_stays_in_float(sensitive_net, sensitive_onnx):
    batches = sensitive_net[1]
    found, layers, sensitive, steps, *_ = quantize_onnx(sensitive_onnx, batches, max_float_share=1)
    assert len(layers) == 3
    assert layers[0].activation_db < 20 < layers[1].activation_db
    assert [step.used for step in steps if 'in float' in step.name] == [True]
    assert {layer.macs for layer in layers} == {8 * 3 * 9 * 30**2, 8 * 8 * 9 * 28**2, 8 * 8 * 9 * 14**2}
    # The sensitive layer, and the one that reads its output.
    assert [layer.in_float for layer in layers] == [True, False, True]
    (layer,) = sensitive
    assert layer.output
    assert np.array_equal(layer.weights, sensitive_net[0][2].weight.detach())
    stored = [onnx.numpy_helper.to_array(tensor) for tensor in found.graph.initializer]
    weights = [values for values in stored if values.dtype == np.int8 and values.ndim > 1]
    assert weights
    assert max(np.abs(values.astype(int)).max() for values in weights) <= 64  # cannot overflow on any CPU
    makers = {value: node.op_type for node in found.graph.node for value in node.output}
    for measured in layers:
        node = next(node for node in found.graph.node if node.name == measured.layer)
        assert (makers.get(node.input[1]) == 'DequantizeLinear') == (not measured.in_float)
    expected = run(sensitive_onnx, batches[0])
    assert np.abs(run(found, batches[0]) - expected).max() < 0.05 * np.abs(expected).max()


def test_layers_in_float_are_within_the_budget(sensitive_net, sensitive_onnx):
    """Here the sensitive layer and its reader have 94 % of the MACs."""
    layers = quantize_onnx(sensitive_onnx, sensitive_net[1]).layers
    assert sum(layer.macs for layer in layers if layer.in_float) <= MAX_FLOAT_SHARE * sum(one.macs for one in layers)
    assert not any(layer.in_float for layer in layers)


def test_plain_int8_tries_no_step(sensitive_net, sensitive_onnx):
    found = quantize_onnx(sensitive_onnx, sensitive_net[1], plain=True)
    assert [step.name for step in found.steps] == ['plain']
    assert (found.sensitive, found.is_equalised, found.rounded) == ([], False, [])
    assert not any(layer.in_float for layer in found.layers)


@pytest.mark.filterwarnings('ignore::DeprecationWarning')  # in code of executorch and torchao
def test_a_converter_gets_weights_that_its_quantiser_does_not_change(lraspp, photos, tmp_path):
    content = torch.load(lraspp, weights_only=False)
    content['state_dict']['backbone.bn1.weight'][:4] *= 1e-3  # channels with small weights
    torch.save(content, tmp_path / 'net.pth')
    model = load_model(str(tmp_path / 'net.pth'), device='cpu')
    meta = describe(model, TARGETS['executorch'], kind='logits', precision='int8', size=(64, 96))
    graph = build_graph(model, meta)
    batches = [prepare(read_image(photo), meta.input, meta.resize)[0] for photo in photos[:4]]
    program, quantised = float_program(graph, 'int8', batches)
    assert 'ranges of least error' not in [step.name for step in quantised.steps]
    assert quantised.steps[-1].used
    before = graph.program(batches if quantised.is_equalised else ()).state_dict
    after = program.state_dict
    nodes = [node for node in program.module().graph.nodes if node.target is torch.ops.aten.conv2d.default]
    biases = {node.args[1].target: node.args[2].target for node in nodes if len(node.args) > 2 and node.args[2]}
    assert len(quantised.rounded) > 40
    stored = None
    if not TARGETS['executorch'].absent(convert=True):
        from mnv4_mm.deploy.quantize_pt2e import quantize_pt2e

        int8 = quantize_pt2e(program, batches, quantised.sensitive)
        tensors = [*int8.state_dict.values(), *int8.constants.values()]
        stored = {one.numpy().tobytes() for one in tensors if getattr(one, 'dtype', None) == torch.int8}
    for one in quantised.rounded:
        step = before[one.name].abs().flatten(1).amax(1) / 127
        levels = after[one.name] / step.clamp_min(1e-30).view(-1, 1, 1, 1)
        torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-3)
        assert (levels.abs().flatten(1).amax(1).round() == 127).all()  # a quantiser computes the same step
        assert stored is None or levels.round().to(torch.int8).numpy().tobytes() in stored
        if one.name in biases:
            shift = after[biases[one.name]] - before[biases[one.name]]
            torch.testing.assert_close(shift, torch.from_numpy(one.shift).float(), atol=1e-4, rtol=0)
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed <= {name for one in quantised.rounded for name in (one.name, biases.get(one.name))}
    image = torch.from_numpy(batches[0])
    expected, found = graph.module(image)[0], program.module()(image)[0]
    assert float((found - expected).square().mean()) < 0.01 * float(expected.var())


def test_a_layer_stays_in_float_in_openvino(sensitive_net, sensitive_onnx):
    if TARGETS['openvino'].absent(convert=True):
        pytest.skip(TARGETS['openvino'].absent(convert=True))
    batches = sensitive_net[1]
    quantised = quantize_onnx(sensitive_onnx, batches, max_float_share=1)
    core = without_telemetry('openvino').Core()
    # OpenVINO's own names of the precisions in which it runs layers.
    compiled = core.compile_model(core.read_model(quantised.model.SerializeToString()), 'CPU')
    kinds = {
        node.get_friendly_name().split('/')[0]: node.get_rt_info()['runtimePrecision'].astype(str)
        for node in compiled.get_runtime_model().get_ordered_ops()
        if 'Convolution' in str(node.get_rt_info()['layerType'].astype(str))
    }
    expected = {layer.layer for layer in quantised.layers if not layer.in_float}
    assert {name for name, kind in kinds.items() if kind in ('u8', 'i8')} == expected
    found = compiled(batches[0])[0]
    assert np.abs(found - run(quantised.model, batches[0])).max() < 0.02


class TwoLevels(torch.nn.Module):
    """A net with two levels that share a convolution."""

    def __init__(self):
        super().__init__()
        self.down = torch.nn.Conv2d(3, 4, 3, stride=2)
        self.head = torch.nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.down(x)
        return torch.cat([self.head(x).flatten(2), self.head(x[..., ::2, ::2] * 9).flatten(2)], dim=2)


def test_convolutions_that_share_a_bias_print_no_errors(monkeypatch, capfd):
    """ONNX Runtime copies the bias, and cannot find the copy in the float net."""
    monkeypatch.setattr(logging.getLogger(), 'handlers', [])  # pytest's
    example = (torch.rand(1, 3, 32, 32),)
    program = torch.onnx.export(TwoLevels().eval(), example, input_names=['image'], dynamo=True, verbose=False)
    capfd.readouterr()
    found, layers, *_ = quantize_onnx(program.model_proto, [example[0].numpy()])
    biases = [tensor.name for tensor in found.graph.initializer if 'head.bias' in tensor.name]
    assert {name.removesuffix('_quantized') for name in biases} > {'head.bias'}
    assert [layer.weights for layer in layers].count('head.weight') == 2
    assert 'not found' not in ''.join(capfd.readouterr())
    assert logging.getLogger().handlers == []


def test_weights_that_convolutions_share_are_rounded_once():
    """Their inputs are taken together, and the mean error of all their outputs is moved to the biases once."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    batches = [rng.uniform(0, 1, (1, 3, 64, 64)).astype(np.float32) for _ in range(4)]
    example = (torch.from_numpy(batches[0]),)
    program = torch.onnx.export(TwoLevels().eval(), example, input_names=['image'], dynamo=True, verbose=False)
    plain = quantize_onnx(program.model_proto, batches, plain=True).model
    rounded = onnx.ModelProto()
    rounded.CopyFrom(plain)
    convolutions = round_adaptively(program.model_proto, rounded, batches)
    assert [one.name for one in convolutions] == ['down.weight', 'head.weight']
    expected = np.concatenate([run(program.model_proto, batch) for batch in batches], 2)
    errors = [np.concatenate([run(model, batch) for batch in batches], 2) - expected for model in (plain, rounded)]
    before, after = ((error**2).mean() for error in errors)
    assert after < before
    # One of the levels in float: converters store the weights once, and find the layer that stays in float by them.
    half = quantize_onnx(program.model_proto, batches, plain=True)
    reads = [node for node in half.model.graph.node if node.op_type == 'Conv']
    reads[-1].input[1] = 'head.weight'
    half.model.graph.initializer.extend(
        tensor for tensor in program.model_proto.graph.initializer if tensor.name == 'head.weight'
    )
    assert [one.name for one in round_adaptively(program.model_proto, half.model, batches)] == ['down.weight']


@pytest.mark.parametrize(
    'zeros',
    [{'0': slice(2, 5), '2': slice(3)}, {'2': slice(None)}, dict.fromkeys('024', slice(None))],
    ids=['some', 'a_layer', 'all'],
)
def test_filters_of_zeros_have_finite_outputs(zeros):
    """Pruning leaves such filters, in some or all channels; a scale of 0 for them would divide 0 by 0."""
    torch.manual_seed(0)
    depthwise = torch.nn.Conv2d(8, 8, 3, groups=8)
    last = torch.nn.Conv2d(8, 4, 1)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.ReLU(), depthwise, torch.nn.ReLU(), last)
    for layer, filters in zeros.items():
        for parameter in net.get_submodule(layer).parameters():
            parameter.data[filters] = 0
    rng = np.random.default_rng(0)
    batches = [rng.uniform(0, 1, (1, 3, 32, 32)).astype(np.float32) for _ in range(2)]
    example = (torch.from_numpy(batches[0]),)
    program = torch.onnx.export(net.eval(), example, input_names=['image'], dynamo=True, verbose=False)
    for plain in (True, False):
        found = quantize_onnx(program.model_proto, batches, plain=plain).model
        stored = {one.name: onnx.numpy_helper.to_array(one) for one in found.graph.initializer}
        scales = [stored[node.input[1]] for node in found.graph.node if node.op_type in QUANTISED]
        assert len(scales) > 3
        assert all(np.isfinite(scale).all() and (scale > 0).all() for scale in scales)
        for batch in batches:
            expected = run(program.model_proto, batch)
            output = run(found, batch)
            assert np.isfinite(output).all()
            assert np.abs(output - expected).max() <= 0.1 * np.abs(expected).max()


@pytest.mark.long
def test_a_pruned_net_is_exported(lraspp, tmp_path, photos):
    content = torch.load(lraspp, weights_only=False)
    state = content['state_dict']
    for layer, filters in (
        ('conv_stem', slice(0, None, 2)),
        ('blocks.2.1.dw_mid.conv', slice(0, None, 2)),
        ('blocks.2.2.pw_exp.conv', slice(None)),
    ):
        state[f'backbone.{layer}.weight'][filters] = 0
    checkpoint = tmp_path / 'net.pth'
    torch.save(content, checkpoint)
    options = dict(size=(64, 96), kind='logits', precision='int8', calibration=str(photos[0].parent))
    predictor = load(export(str(checkpoint), ['onnx'], log=lambda line: None, **options)[0])
    batches = [prepare(read_image(photo), predictor.meta.input, predictor.meta.resize)[0] for photo in photos[:2]]
    assert all(np.isfinite(predictor.run(batch)[0]).all() for batch in batches)
    pytorch = reference(load_model(str(checkpoint), device='cpu'), predictor.meta)
    assert difference(pytorch, predictor, batches).largest < 0.5


def test_a_large_sensitive_layer_does_not_keep_small_ones_out():
    layers = [
        LayerSensitivity(name, name, decibels, 40.0, 30.0, macs)
        for name, decibels, macs in (
            ('large', 5.0, 900),
            ('a', 10.0, 20),
            ('b', 15.0, 20),
            ('c', 18.0, 20),
            ('d', 40.0, 40),
        )
    ]
    graph = onnx.helper.make_graph([], 'empty', [], [])
    assert list(float_candidates(layers, graph)) == [{'a'}, {'a', 'b'}]
    assert list(float_candidates(layers, graph, 0.06)) == [{'a'}, {'a', 'b'}, {'a', 'b', 'c'}]
    assert list(float_candidates(layers, graph, 0.0)) == []


def test_nodes_behind_the_last_convolution_stay_in_float(sensitive_net, sensitive_onnx):
    batches = [np.full((1, 3, 32, 32), 0.5, np.float32)]
    found = quantize_onnx(sensitive_onnx, batches).model
    makers = {value: node.op_type for node in found.graph.node for value in node.output}
    softmax = next(node for node in found.graph.node if node.op_type == 'Softmax')
    assert not any(node.op_type in QUANTISED for node in found.graph.node if softmax.output[0] in node.input)
    assert makers['y'] == 'Softmax'


@pytest.mark.parametrize(
    'name', ['onnx', *(pytest.param(name, marks=pytest.mark.long) for name in ('openvino', 'executorch', 'ncnn'))]
)
def test_files_of_a_real_net(name, ssdlite, tmp_path, photos):
    if TARGETS[name].absent(convert=True):
        pytest.skip(TARGETS[name].absent(convert=True))
    folder = tmp_path / 'images'
    folder.mkdir()
    for photo in photos:
        shutil.copy(photo, folder)
    path = export(
        str(ssdlite),
        [name],
        out_dir=str(tmp_path),
        kind='raw',
        precision='int8',
        calibration=str(folder),
        log=lambda line: None,
    )[0]
    meta = read_meta(path)
    assert sum((tmp_path / file).stat().st_size for file in meta.files if 'layers' not in file) < 5.5e6  # of 12.4
    content = json.loads((tmp_path / f'{path.name}.layers.json').read_text())
    layers = content['layers']
    # The other formats compute ranges themselves.
    first = ['plain', 'channels equalised', *(['ranges of least error'] if name in ('onnx', 'openvino') else [])]
    steps = [step['name'] for step in content['steps']]
    assert steps[: len(first)] == first
    assert ('ranges of least error' in steps) == (name in ('onnx', 'openvino'))
    # The net is untrained, and its gain differs between CPUs: 0.6 dB with AVX2 only, above 1 dB with AVX-512.
    assert content['steps'][0]['output_db'] + 0.3 < content['steps'][-1]['output_db']
    assert content['measured_in'] == 'ONNX Runtime'
    assert len(content['calibration']) == len(photos)
    assert len(layers) > 60
    assert all(layer['weights'].startswith(('backbone', 'neck', 'head')) for layer in layers)
    macs_in_float = sum(layer['macs'] for layer in layers if layer['in_float'])
    assert macs_in_float <= MAX_FLOAT_SHARE * sum(layer['macs'] for layer in layers)
    predictor = load(path)
    pytorch = reference(load_model(str(ssdlite), device='cpu'), meta)
    batch = prepare(read_image(photos[0]), meta.input, meta.resize)[0]
    found = difference(pytorch, predictor, [batch])
    assert found.largest > 1e-3  # for an untrained net; tools/compare.py measures trained ones
    boxes = [one.run(batch)[0] for one in (pytorch, predictor)]
    assert np.abs(boxes[0] - boxes[1]).mean() < 4  # pixels
    if name == 'onnx':  # the list agrees with the file
        graph = onnx.load(path).graph
        assert sum(node.op_type == 'QuantizeLinear' for node in graph.node) > 60
        rounded = {value for node in graph.node if node.op_type == 'DequantizeLinear' for value in node.output}
        found = {node.name for node in graph.node if node.op_type == 'Conv' and node.input[1] not in rounded}
        assert found == {layer['layer'] for layer in layers if layer['in_float']}


@pytest.mark.filterwarnings('ignore::DeprecationWarning')  # in code of executorch and torchao
def test_sensitive_layers_stay_in_float_in_torch(sensitive_net, sensitive_onnx):
    if TARGETS['executorch'].absent(convert=True):
        pytest.skip(TARGETS['executorch'].absent(convert=True))
    from mnv4_mm.deploy.quantize_pt2e import quantize_pt2e

    net, batches = sensitive_net
    program = torch.export.export(net, (torch.from_numpy(batches[0]),))
    expected = net(torch.from_numpy(batches[0]))
    found = {}
    for name, layers in (('all', []), ('kept', quantize_onnx(sensitive_onnx, batches, max_float_share=1).sensitive)):
        graph = quantize_pt2e(program, batches, layers).module()
        convolutions = [node for node in graph.graph.nodes if 'conv2d' in str(node.target)]
        assert len(convolutions) == 3
        rounded = ['dequantize' in str(node.args[1].target) for node in convolutions]
        softmax = next(node for node in graph.graph.nodes if 'softmax' in str(node.target))
        assert not any('quantize_per_tensor' in str(user.target) for user in softmax.users)
        with torch.no_grad():
            found[name] = rounded, float((graph(torch.from_numpy(batches[0])) - expected).abs().max())
    # The sensitive layer, and the one that reads its output.
    assert [rounded for rounded, _ in found.values()] == [[True] * 3, [True, False, False]]
    assert 0 < found['kept'][1] < 0.5 * found['all'][1]


class Clamp(nn.Module):
    def forward(self, x):
        return x.clamp(0, 6)


@pytest.mark.filterwarnings('ignore::DeprecationWarning')  # in code of executorch and torchao
@pytest.mark.parametrize('clip', [nn.ReLU6(), nn.Hardtanh(), Clamp()])
def test_a_clipped_large_range_has_all_levels_in_torch(clip):
    if TARGETS['executorch'].absent(convert=True):
        pytest.skip(TARGETS['executorch'].absent(convert=True))
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    from mnv4_mm.deploy.quantize_pt2e import quantize_pt2e

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU6(), nn.Conv2d(16, 16, 1), clip, nn.Conv2d(16, 4, 1)).eval()
    with torch.no_grad():
        net[0].weight *= 1000  # outputs up to some thousand, of which ReLU6 keeps 0 to 6
    batches = [torch.randn(1, 3, 16, 16).numpy() for _ in range(4)]
    program = torch.export.export(net, (torch.from_numpy(batches[0]),))
    quantised = quantize_pt2e(program, batches, [])
    with torch.no_grad():
        expected, found = (one(torch.from_numpy(batches[0])) for one in (net, quantised.module()))
    lowered = to_edge_transform_and_lower(quantised, partitioner=[XnnpackPartitioner()]).exported_program().graph
    calls = {str(node.target) for node in lowered.nodes if node.op == 'call_function'}
    assert [name for name in calls if 'convolution' in name or 'hardtanh' in name] == []  # XNNPACK computes them
    assert float((found - expected).square().mean().sqrt() / expected.std()) < 0.1  # 0.9 with the range before ReLU6


def run_pte(program, batch, folder):
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    path = folder / 'net.pte'
    path.write_bytes(lowered.to_executorch().buffer)
    return Runtime.get().load_program(path).load_method('forward').execute([torch.from_numpy(batch)])


class Trained(nn.Module):
    """Two convolutions, rounded as after ``--qat``, whose outputs are concatenated."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, channels, scale in (('first', 3, 1e-8), ('second', 4, 0.01)):
            integers = torch.randint(-40, 41, (4, channels, 1, 1), generator=generator).to(torch.int8)
            self.register_buffer(f'{name}_integers', integers)
            self.register_buffer(f'{name}_scale', torch.full((4,), scale))
        self.register_buffer('zeros', torch.zeros(4, dtype=torch.int8))
        steps = (('input', 0.004, 0), ('first', 1e-8, 128), ('second', 2e-8, 40), ('both', 2e-8, 40))
        for name, scale, zero_point in steps:
            self.register_buffer(f'{name}_step', torch.tensor(scale))
            self.register_buffer(f'{name}_zero', torch.tensor(zero_point, dtype=torch.uint8))

    def rounded(self, x, name):
        return torch.ops.mnv4_mm.round_activation(x, getattr(self, f'{name}_step'), getattr(self, f'{name}_zero'))

    def convolve(self, x, name):
        integers, scale = (getattr(self, f'{name}_{part}') for part in ('integers', 'scale'))
        return self.rounded(torch.conv2d(x, torch.ops.mnv4_mm.dequantize(integers, scale, self.zeros)), name)

    def forward(self, x):
        first = self.convolve(self.rounded(x * 1.0, 'input'), 'first')
        both = self.rounded(torch.cat([first, self.convolve(first, 'second')], 1), 'both')
        return self.convolve(both[:, :4], 'second')


@pytest.mark.filterwarnings('ignore::DeprecationWarning')  # in code of executorch and torchao
def test_trained_scales_are_kept_whatever_their_size_in_executorch(tmp_path):
    if TARGETS['executorch'].absent(convert=True):
        pytest.skip(TARGETS['executorch'].absent(convert=True))
    from mnv4_mm.deploy.quantize_pt2e import trained_pt2e

    net = Trained().eval()
    batch = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)).numpy()
    quantised = trained_pt2e(torch.export.export(net, (torch.from_numpy(batch),)))
    stored = {value.numpy().tobytes() for value in quantised.state_dict.values() if value.dtype == torch.int8}
    assert stored == {one.numpy().tobytes() for one in (net.first_integers, net.second_integers)}
    expected = net(torch.from_numpy(batch))
    assert expected.unique().numel() > 10
    (found,) = run_pte(quantised, batch, tmp_path)
    steps = (found - expected).abs() / net.second_step
    # In ExecuTorch, both parts of the concatenation have one scale, which includes both ranges.
    assert float(steps.max()) < 1.5
    assert float(steps.mean()) < 0.3


@pytest.mark.filterwarnings('ignore::DeprecationWarning')  # in code of executorch and torchao
def test_a_shared_range_includes_all_trained_ones():
    from mnv4_mm.deploy.quantize_pt2e import Scale, _union

    wide, narrow, shifted = Scale(0.02, 10), Scale(0.01, 0), Scale(0.015, -128)
    assert _union([narrow, wide]) == wide  # to the last bit
    found = _union([narrow, wide, shifted])
    assert found.low == pytest.approx(wide.low, abs=found.scale)
    assert found.high == pytest.approx(shifted.high, abs=found.scale)
    assert found.scale == pytest.approx((shifted.high - wide.low) / 255)
    assert _union([Scale(1.2e-35, -128)]) == Scale(1.0, 0)  # always zero


class Concatenated(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 1), nn.ModuleList([nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)])

    def forward(self, x):
        x = self.first(x)
        maps = [layer(x).permute(0, 2, 3, 1).flatten(1, 2) for layer in self.last]
        return torch.cat([maps[0], maps[1] * 1000], 1)


@pytest.mark.filterwarnings('ignore::DeprecationWarning')  # in code of executorch and torchao
def test_a_concatenation_after_the_last_convolutions_stays_in_float_in_torch():
    if TARGETS['executorch'].absent(convert=True):
        pytest.skip(TARGETS['executorch'].absent(convert=True))
    from mnv4_mm.deploy.quantize_pt2e import quantize_pt2e

    torch.manual_seed(0)
    net = Concatenated().eval()
    batches = [torch.randn(1, 3, 16, 16).numpy() for _ in range(4)]
    program = torch.export.export(net, (torch.from_numpy(batches[0]),))
    with torch.no_grad():
        expected, found = (
            one(torch.from_numpy(batches[0])) for one in (net, quantize_pt2e(program, batches, []).module())
        )
    small = expected[:, :256]  # with the scale of the others, all of these would become zero
    assert float((found[:, :256] - small).square().mean().sqrt() / small.std()) < 0.05


class Levels(nn.Module):
    """Two levels that share a convolution, as in the head of RetinaNet."""

    def __init__(self):
        super().__init__()
        self.first, self.shared = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        x = self.first(x)
        return self.shared(x), self.shared(nn.functional.max_pool2d(x, 2))


@pytest.mark.filterwarnings('ignore::DeprecationWarning')  # in code of executorch and torchao
def test_all_calls_of_a_shared_convolution_are_quantised_in_executorch(tmp_path):
    if TARGETS['executorch'].absent(convert=True):
        pytest.skip(TARGETS['executorch'].absent(convert=True))
    from mnv4_mm.deploy.quantize_pt2e import quantize_pt2e

    torch.manual_seed(0)
    net = Levels().eval()
    batches = [torch.rand(1, 3, 16, 16).numpy() for _ in range(4)]
    quantised = quantize_pt2e(torch.export.export(net, (torch.from_numpy(batches[0]),)), batches, [])
    weights = [node for node in quantised.graph.nodes if 'dequantize_per_channel' in str(node.target)]
    assert len(weights) == 3
    with torch.no_grad():
        expected = net(torch.from_numpy(batches[0]))
    for a, b in zip(run_pte(quantised, batches[0], tmp_path), expected, strict=True):
        assert float((a - b).abs().max() / b.abs().max()) < 0.05


@pytest.mark.filterwarnings('ignore::DeprecationWarning')  # in code of executorch and torchao
@pytest.mark.parametrize('bias', [3, -3])
def test_a_large_bias_of_a_channel_without_weights_is_kept_in_executorch(bias, tmp_path):
    """XNNPACK stores biases as int32 in units of the scales of input and weights, and larger ones wrap around."""
    if TARGETS['executorch'].absent(convert=True):
        pytest.skip(TARGETS['executorch'].absent(convert=True))
    from mnv4_mm.deploy.quantize_pt2e import quantize_pt2e

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)).eval()
    with torch.no_grad():
        net[0].weight *= 0.1
        net[0].bias.zero_()
        net[1].weight[0], net[1].bias[0] = 0, bias
    batches = [torch.rand(1, 3, 16, 16).numpy() for _ in range(4)]
    program = torch.export.export(net, (torch.from_numpy(batches[0]),))
    (found,) = run_pte(quantize_pt2e(program, batches, []), batches[0], tmp_path)
    with torch.no_grad():
        expected = net(torch.from_numpy(batches[0]))
    # Without the limit on the bias, the error is as large as the outputs.
    assert float((found - expected).abs().max() / expected.abs().max()) < 0.05


@pytest.mark.filterwarnings('ignore::DeprecationWarning')  # in code of executorch and torchao
def test_a_sensitive_layer_that_is_not_in_the_graph_is_one_line(sensitive_net):
    if TARGETS['executorch'].absent(convert=True):
        pytest.skip(TARGETS['executorch'].absent(convert=True))
    from mnv4_mm.deploy.quantize_pt2e import quantize_pt2e

    net, batches = sensitive_net
    program = torch.export.export(net, (torch.from_numpy(batches[0]),))
    with pytest.raises(UserError, match=r'weights of shape \(2, 3\) that stays in float is not in the graph'):
        quantize_pt2e(program, batches, [SensitiveLayer(np.ones((2, 3), np.float32), -1, False)])


def test_core_mls_weights_are_those_of_the_net(ssdlite, tmp_path, monkeypatch):
    """Read back by coremltools, which dequantises them: what is compared does not depend on how they were written."""
    if TARGETS['coreml'].absent(convert=True):
        pytest.skip(TARGETS['coreml'].absent(convert=True))
    MLModel = coremltools().models.MLModel  # noqa: N806
    from coremltools.optimize import coreml as optimize

    model = load_model(str(ssdlite), device='cpu')
    meta = describe(model, TARGETS['coreml'], kind='raw', precision='int8')
    graph = build_graph(model, meta)
    tensors = {name: value.detach().numpy() for name, value in graph.program().state_dict.items()}
    weights = {name: value for name, value in tensors.items() if value.ndim == 4}
    kept = max(weights.values(), key=np.size)
    sensitive = [SensitiveLayer(kept, -1, False)]
    quantised = QuantizedModel(None, [], sensitive, [], is_equalised=False)
    monkeypatch.setattr(coreml, 'float_program', lambda *_: (graph.program(), quantised))
    path = tmp_path / 'net.mlpackage'
    TARGETS['coreml'].convert(graph, path, 'int8')
    large = [value for value in weights.values() if value.size > 2048]
    assert f'{len(large) - 1} of them weights in 8 bits' in TARGETS['coreml'].inspect(path, meta)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # its own deprecated calls; folders that it leaves to the garbage collector
        restored = optimize.decompress_weights(MLModel(str(path), skip_model_load=True))
        stored = [np.float32(one.val).ravel() for one in optimize.get_weights_metadata(restored, 0).values()]
        del restored
        gc.collect()
    for value in large:
        step = np.abs(value).max() / 127
        error = min(np.abs(np.sort(one) - np.sort(value, axis=None)).max() for one in stored if one.size == value.size)
        assert error < 0.6 * step
        if value is kept:
            assert error < 2**-10 * np.abs(value).max()  # half precision
    # Anchors are not rounded to 256 steps.
    sides = (tensors['priors'][:, 2:] - tensors['priors'][:, :2]).ravel()
    error = min(np.abs(np.sort(one) - np.sort(sides)).max() for one in stored if one.size == sides.size)
    assert error < 2**-10 * sides.max()
