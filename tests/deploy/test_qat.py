"""Fine-tuning for int8: every head trains, resumes, and is exported with the scales that it was trained with."""

import copy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from end_to_end import IN_PROCESS, LEARNED, last_checkpoint, resized
from mmengine.optim import build_optim_wrapper
from torch import nn

import mnv4_mm
from mnv4_mm.apis.model import load_model
from mnv4_mm.apis.train import train as train_without_start
from mnv4_mm.config.qat import qat_settings
from mnv4_mm.deploy.describe import describe
from mnv4_mm.deploy.graph import build_graph
from mnv4_mm.deploy.qat import names_in_float, start_qat
from mnv4_mm.deploy.qdq import RoundActivation
from mnv4_mm.deploy.sensitivity import LayerSensitivity
from mnv4_mm.deploy.targets import TARGETS
from mnv4_mm.engine.qat import (
    RangesHook,
    RoundedWeights,
    Rounding,
    calibrate,
    is_rounded,
    layer_names,
    quantize_model,
    quantized_net,
    rescale_for_training,
    weight_scale,
)
from mnv4_mm.errors import UserError
from mnv4_mm.images import read_image
from mnv4_mm.runtime import load
from mnv4_mm.runtime.meta import read_meta
from mnv4_mm.runtime.preprocess import prepare
from mnv4_mm.weights.checkpoint import read_checkpoint

STEPS = 4  # of two images
SMALL = 'mnv4_lraspp_ade20k-mini'


@pytest.fixture(scope='module')
def tuned(once, few, learned):
    """Fine-tune a head for int8 for ``STEPS`` steps, or resume such a run; return the work directory."""

    def tune(name, resume=False, folder=None):
        options = {**IN_PROCESS, 'train_dataloader.batch_size': 2, 'default_hooks.checkpoint.max_keep_ckpts': -1}
        if '_coco' in name:  # two epochs of four images
            options |= resized(LEARNED[name][1]) | {'train_dataloader.dataset.times': 1, 'train_cfg.val_interval': 2}
            length = dict(epochs=2)
        else:
            options['default_hooks.checkpoint.interval'] = STEPS // 2
            length = dict(iters=STEPS)
        arguments = dict(
            **length, qat=last_checkpoint(learned(name)), data=str(few), cfg_options=options, resume=resume
        )
        if folder:
            return mnv4_mm.train(name, work_dir=str(folder), **arguments)
        return once(f'int8 {name}', lambda out: mnv4_mm.train(name, work_dir=str(out), **arguments))

    return tune


def check_outputs(path, checkpoint, image, least=0.02):
    """Compare the outputs of a file with those of PyTorch with roundings.

    Where a sum is almost exactly between two steps, the order of summation decides, and such a difference changes what
    later layers round. So the bound is what a relative change of all scales by 3e-7, a few ulp, does to PyTorch, plus
    ``least``, relative to the standard deviation of an output.
    """
    meta = read_meta(path)
    batch = prepare(read_image(image), meta.input, meta.resize)[0]
    exact, changed = (build_graph(load_model(checkpoint, device='cpu'), meta).module for _ in range(2))
    for module in changed.modules():
        if isinstance(module, RoundActivation):
            module.scale.mul_(1 + 3e-7)
    with torch.no_grad():
        expected, nearby = (net(torch.from_numpy(batch)) for net in (exact, changed))
    for found, a, b in zip(load(path).run(batch), expected, nearby, strict=True):
        error, bound = (float((other - a).square().mean().sqrt() / a.std()) for other in (torch.from_numpy(found), b))
        assert error < least + 2 * bound


def check_scales(path, state):
    """Compare integers and scales of weights and scales of feature maps in an ONNX file with a checkpoint's."""
    graph = onnx.load(path).graph
    values = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    ranges = [(state[key].item(), state[key[:-4] + 'low'].item()) for key in state if key.endswith('.high')]
    expected = np.array([(np.float32(high) - np.float32(low)) / np.float32(255) for high, low in ranges])
    scales = [values[node.input[1]] for node in graph.node if node.op_type == 'QuantizeLinear']
    assert len(scales) > 10
    assert np.isin([scale for scale in scales if not scale.ndim], expected).all()
    weights = {}
    for key in state:
        if key.endswith('weight.original'):
            factor = state[key.replace('original', '0.factor')]
            assert torch.equal(factor.log2(), factor.log2().round())
            weight = state[key] * factor.view(-1, *[1] * (state[key].ndim - 1))
            scale = weight_scale(weight)
            weights[scale.numpy().tobytes()] = RoundedWeights.integers(weight, scale).numpy()
    found = 0
    for node in graph.node:
        if node.op_type != 'DequantizeLinear' or node.input[0] not in values:
            continue
        stored, scale, zero = (values[name] for name in node.input)
        if stored.dtype.itemsize == 1:  # not a bias
            integers = stored.astype(int) - zero.astype(int).reshape(-1, *[1] * (stored.ndim - 1))
            expected = weights[scale.tobytes()]
            if integers.shape != expected.shape:  # on maps of 1x1, only the centre of a kernel is used
                expected = expected[:, :, 1:2, 1:2]
            assert np.array_equal(integers, expected)
            found += 1
    assert found > 10  # more than there are weights if levels share convolutions


@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=[] if name == SMALL else pytest.mark.long) for name in LEARNED]
)
def test_every_head_is_fine_tuned_resumed_and_exported(name, tuned, few, tmp_path):
    folder = tuned(name)
    last = last_checkpoint(folder)
    before, after = (read_checkpoint(path).content['state_dict'] for path in (folder / 'qat_start.pth', last))
    assert 'ParametrizedOptimWrapperConstructor' in read_checkpoint(last).content['meta']['cfg']
    changed = [key for key, value in after.items() if not torch.equal(value, before[key])]
    assert any(key.endswith('weight.original') for key in changed)
    assert any(key.endswith('.high') for key in changed)
    # A run that continues in the middle ends with the same weights and ranges.
    middle = 'epoch_1.pth' if '_coco' in name else f'iter_{STEPS // 2}.pth'
    resumed = tuned(name, resume=folder / middle, folder=tmp_path / 'resumed')
    again = read_checkpoint(last_checkpoint(resumed)).content['state_dict']
    assert again.keys() == after.keys()
    assert [key for key, value in after.items() if not torch.equal(value, again[key])] == []
    kind = 'raw' if '_coco' in name else 'logits'
    stale = tmp_path / f'{Path(last).stem}_{kind}_int8.onnx.layers.json'
    stale.write_text('{}')  # of another file with this name
    (path,) = mnv4_mm.export(last, ['onnx'], out_dir=str(tmp_path), kind=kind, precision='int8', log=lambda line: None)
    assert path.is_file()
    assert not stale.exists()
    check_scales(path, after)
    check_outputs(path, last, min((few / 'images/validation').iterdir()))
    # Each layer has 8 bits in the file, unless it stays in float.
    graph = onnx.load(path).graph
    makers = {value: node.op_type for node in graph.node for value in node.output}
    layers = [node for node in graph.node if node.op_type in ('Conv', 'MatMul')]
    in_float = [node for node in layers if makers.get(node.input[1]) != 'DequantizeLinear']
    assert len(in_float) == len(qat_settings(read_checkpoint(last))['in_float']) < 0.5 * len(layers)


@pytest.mark.parametrize('target', ['openvino', 'executorch'])
@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=[] if name == SMALL else pytest.mark.long) for name in LEARNED]
)
def test_other_runtimes_use_the_trained_scales(name, target, tuned, few, tmp_path):
    if TARGETS[target].absent(convert=True):
        pytest.skip(TARGETS[target].absent(convert=True))
    last, kind = last_checkpoint(tuned(name)), 'raw' if '_coco' in name else 'logits'
    (path,) = mnv4_mm.export(last, [target], out_dir=str(tmp_path), kind=kind, precision='int8')
    # In ExecuTorch, the inputs and the output of a concatenation or a mean have one scale.
    check_outputs(path, last, min((few / 'images/validation').iterdir()), 0.1 if target == 'executorch' else 0.02)


@pytest.mark.filterwarnings('ignore::DeprecationWarning')  # in code of executorch and torchao
def test_torch_keeps_the_trained_integers(tuned):
    if TARGETS['executorch'].absent(convert=True):
        pytest.skip(TARGETS['executorch'].absent(convert=True))
    from mnv4_mm.deploy.quantize_pt2e import trained_pt2e

    model = load_model(last_checkpoint(tuned(SMALL)), device='cpu')
    graph = build_graph(model, describe(model, TARGETS['executorch'], kind='logits', precision='int8'))
    trained = {value.numpy().tobytes() for value in graph.program().state_dict.values() if value.dtype == torch.int8}
    scales = {float(one.scale) for one in graph.module.modules() if isinstance(one, RoundActivation)}
    module = trained_pt2e(graph.program()).module()
    values = dict(module.named_buffers()) | dict(module.named_parameters())
    calls = [node for node in module.graph.nodes if 'dequantize_per' in str(node.target)]
    weights = [values[node.args[0].target] for node in calls if 'channel' in str(node.target)]
    assert len(weights) > 40
    assert {weight.numpy().tobytes() for weight in weights} <= trained
    found = {node.args[1] for node in calls if 'channel' not in str(node.target)}
    assert 40 < len(found) <= len(scales)
    assert len(found - scales) <= 3  # ranges that the maps of two concatenations and a mean share


def test_converters_without_scales_get_the_weights_as_they_were_rounded(tuned):
    model = load_model(last_checkpoint(tuned(SMALL)), device='cpu')
    rounded = [one.weight.detach() for one in quantized_net(model).modules() if is_rounded(one)]
    graph = build_graph(model, describe(model, TARGETS['litert'], kind='logits'), without_scales=True)
    stored = {value.numpy().tobytes() for value in graph.program().state_dict.values()}
    assert len(rounded) > 40
    assert {one.numpy().tobytes() for one in rounded} <= stored


def test_mistakes_are_one_line(tuned, learned, few, tmp_path):
    folder, start = tuned(SMALL), last_checkpoint(learned(SMALL))
    last, work_dir = last_checkpoint(folder), str(tmp_path / 'run')
    with pytest.raises(UserError, match=r'fine-tuned for int8: use --precision int8. For fp32, export .*, /'):
        mnv4_mm.export(last, ['onnx'], out_dir=str(tmp_path))
    for change, message in (
        (dict(qat=last), 'has been fine-tuned for int8 already'),
        (dict(qat=last_checkpoint(learned('mnv4_ssdlite_coco-mini'))), "has default_scope 'mmdet'"),
        (dict(cfg_options={'load_from': last}), 'a training in float cannot start from it'),
        (dict(resume=last), 'a training in float cannot start from it'),
        (dict(qat=start, resume=start), 'was trained in float: continue it without --qat'),
    ):
        with pytest.raises(UserError, match=message):
            mnv4_mm.train(SMALL, data=str(few), work_dir=work_dir, **change)
    other = last_checkpoint(learned(SMALL))
    content = read_checkpoint(other).content
    content['meta']['dataset_meta']['classes'] = tuple('abcdefgh')
    renamed = tmp_path / 'renamed.pth'
    torch.save(content, renamed)
    with pytest.raises(UserError, match=r'--qat .* was trained on other classes than the data has: a, b, .* there'):
        mnv4_mm.train(SMALL, data=str(few), work_dir=work_dir, qat=str(renamed))
    with pytest.raises(UserError, match='--qat is started by'):
        train_without_start(SMALL, data=str(few), work_dir=work_dir, qat=start)


def test_folding_does_not_change_outputs_for_images_of_any_size(make_checkpoint):
    """With layer scales, attention, and sizes that are no multiples of 32."""
    model = load_model(str(make_checkpoint('mnv4_lraspp_ade20k', 'mnv4_hybrid_m')), device='cpu')
    images = torch.randn(1, 3, 97, 131, generator=torch.Generator().manual_seed(0))
    names = layer_names(model)
    assert len([name for name in names if name.startswith('product#')]) == 16
    with torch.no_grad():
        expected = model.decode_head.forward(model.extract_feat(images))
        quantize_model(model, dict(in_float=names, unrounded=names))
        for rounding in quantized_net(model).roundings():  # of a resize, which reads no layer
            rounding.forward = lambda x: x
        found = model.decode_head.forward(model.extract_feat(images))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_a_rounding_has_256_steps_with_zero_among_them():
    rounding = Rounding()
    x = torch.linspace(-1, 3, 10_000)
    rounding.train()(x)
    assert float(rounding.high) == pytest.approx(0.03)  # 1 % of the range of the first batch
    rounding.low.copy_(x.min())
    rounding.high.copy_(x.max())
    found = rounding.eval()(x)
    assert len(found.unique()) == 256
    assert float((found - x).abs().max()) <= 4 / 255  # half a step, and half a step for zero
    assert float(rounding(torch.zeros(1))) == 0


def test_calibration_finds_the_largest_values(lraspp):
    model = load_model(str(lraspp), device='cpu')
    quantize_model(model, dict(in_float=[], unrounded=[]))
    batches = list(torch.randn(2, 1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    calibrate(model, batches)
    first = quantized_net(copy.deepcopy(model)).roundings()[0]
    assert float(first.high) == max(float(batch.max()) for batch in batches)
    assert float(first.low) == min(float(batch.min()) for batch in batches)


def test_ranges_are_averaged_over_processes(lraspp, monkeypatch):
    model = load_model(str(lraspp), device='cpu')
    quantize_model(model, dict(in_float=[], unrounded=[]))
    roundings = quantized_net(model).roundings()
    for i, rounding in enumerate(roundings):
        rounding.low.fill_(-i)
        rounding.high.fill_(2 * i)

    def average_with_zeros(values, kind):
        assert kind == 'mean'
        values /= 2

    monkeypatch.setattr('mnv4_mm.engine.qat.get_world_size', lambda: 2)
    monkeypatch.setattr('mnv4_mm.engine.qat.all_reduce', average_with_zeros)
    RangesHook().after_train_iter(SimpleNamespace(model=model), 0)
    assert [(one.low.item(), one.high.item()) for one in roundings] == [(-i / 2, i) for i in range(len(roundings))]


def test_settings_of_the_optimizer_reach_parametrised_convolutions(lraspp):
    model = load_model(str(lraspp), device='cpu')
    quantize_model(model, dict(in_float=[], unrounded=[]))
    last = {'net.head.conv_seg.weight': dict(lr_mult=10.0)}
    settings = dict(bias_decay_mult=0.0, bias_lr_mult=2.0, dwconv_decay_mult=3.0, custom_keys=last)
    wrapper = dict(optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.5), paramwise_cfg=settings)
    built = build_optim_wrapper(model, wrapper | dict(constructor='ParametrizedOptimWrapperConstructor'))
    found = {id(group['params'][0]): (group['lr'], group['weight_decay']) for group in built.optimizer.param_groups}
    assert found.keys() == {id(one) for one in model.parameters()}
    expected = {}
    for name, one in model.named_modules():
        if isinstance(one, nn.Conv2d):
            usual = (1.0, 1.5) if one.groups == one.in_channels else (1.0, 0.5)
            parts = one.parametrizations
            expected[id(parts.weight.original)] = (10.0, 0.5) if name.endswith('conv_seg') else usual
            if one.bias is not None:
                expected[id(parts.bias.original)] = (2.0, 0.0)
    assert found == expected
    assert set(found.values()) == {(10.0, 0.5), (1.0, 0.5), (1.0, 1.5), (2.0, 0.0)}


def test_processes_that_do_not_share_the_work_directory_stop_together(lraspp, tmp_path, monkeypatch):
    cfg = SimpleNamespace(work_dir=str(tmp_path))

    def write(cfg, path):
        path.write_bytes(b'0')

    monkeypatch.setattr('mnv4_mm.deploy.qat._write_start', write)
    assert start_qat(cfg) == tmp_path / 'qat_start.pth'
    monkeypatch.setattr('mnv4_mm.deploy.qat.all_gather_object', lambda own: [own, None])
    with pytest.raises(UserError, match=r'process 1 does not find the .*qat_start\.pth that process 0 has written'):
        start_qat(cfg)

    def fail(cfg, path):
        raise UserError('its reason')

    monkeypatch.setattr('mnv4_mm.deploy.qat._write_start', fail)
    monkeypatch.setattr('mnv4_mm.deploy.qat.all_gather_object', None)  # other processes know the reason already
    with pytest.raises(UserError, match='its reason'):
        start_qat(cfg)


def test_convolutions_that_levels_share_stay_in_float_for_all_of_them():
    layers = [
        (name, LayerSensitivity(name, 'w', 40.0, 40.0, 30.0, 1, name in ('conv#1', 'product#0')))
        for name in ('conv', 'conv#1', 'conv_level1', 'product#0', 'product#1', 'conv1')
    ]
    assert names_in_float(layers) == ['conv', 'conv#1', 'product#0']


def test_tiny_weights_are_trained_in_units_of_their_size():
    """Adam's first step changes each number by the learning rate, whatever its size."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([1e-8, 1e-3, 1.0, 50.0, 0.0])
    convolution = nn.Conv2d(16, 5, 1)
    with torch.no_grad():
        convolution.weight.copy_(torch.randn(5, 16, 1, 1, generator=generator) * sizes.view(-1, 1, 1, 1))
        convolution.bias.copy_(torch.tensor([0.5, 1e-9, 1e-9, 1e-9, 0.0]))
    before = [convolution.weight.detach().clone(), convolution.bias.detach().clone()]
    rescale_for_training(convolution)
    assert torch.equal(convolution.weight, before[0])
    assert torch.equal(convolution.bias, before[1])
    optimizer = torch.optim.Adam(convolution.parameters(), lr=1e-3)
    convolution(torch.randn(4, 16, 8, 8, generator=generator)).square().sum().backward()
    optimizer.step()
    change = (convolution.weight - before[0]).abs().amax((1, 2, 3)) / sizes
    assert ((change[:4] > 1e-3) & (change[:4] < 1e-2)).all()
    assert (convolution.weight - before[0])[4].abs().max() < 1e-15
    change = (convolution.bias - before[1]).abs()
    assert 1e-4 < change[0] / 0.5 < 1e-2
    assert 1e-7 < change[1] < 1e-5
