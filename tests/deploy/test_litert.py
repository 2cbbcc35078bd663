"""LiteRT's converter: its silent mistakes, what it converts correctly, and the error if it is absent.

test_targets.py has the tests of every runtime. `make test-litert` runs both with the converter.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnv4_mm.apis.model import load_model
from mnv4_mm.deploy.compare import reference
from mnv4_mm.deploy.difference import difference
from mnv4_mm.deploy.export import export
from mnv4_mm.deploy.quantize import quantize_onnx
from mnv4_mm.deploy.sensitivity import SensitiveLayer
from mnv4_mm.deploy.targets import TARGETS
from mnv4_mm.deploy.targets.litert import FOLDER, VARIABLE, convert, converter
from mnv4_mm.errors import UserError
from mnv4_mm.images import read_image
from mnv4_mm.models.layers import matmul_attention, repeated_attention
from mnv4_mm.runtime import load
from mnv4_mm.runtime.meta import Meta, read_meta
from mnv4_mm.runtime.preprocess import prepare

LITERT = TARGETS['litert']
needs_converter = pytest.mark.skipif(LITERT.absent(convert=True) is not None, reason=str(LITERT.absent(convert=True)))


class Cases(nn.Module):
    """Attention over (1, heads + 2, L, d): query heads, then the key head and the value head that they share."""

    names = ('fused', 'expanded', 'product', 'repeated')

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        q, k, v = image.split((image.shape[1] - 2, 1, 1), 1)
        heads = q.shape[1]
        # torch's decomposition of shared heads; it is converted wrongly even without attention.
        expanded = k.unsqueeze(2).expand(-1, -1, heads, -1, -1).reshape(q.shape)
        fused = F.scaled_dot_product_attention(q, k, v)
        return fused, expanded.transpose(-1, -2), matmul_attention(q, k, v), repeated_attention(q, k, v)


@pytest.fixture(scope='module')
def relative_errors(tmp_path_factory) -> dict[str, float]:
    """Return the error of each of ``Cases`` after conversion, relative to its largest value."""
    from ai_edge_litert.interpreter import Interpreter

    inputs = torch.randn(1, 6, 9, 8, generator=torch.Generator().manual_seed(0))
    path = tmp_path_factory.mktemp('cases') / 'cases.tflite'
    convert(torch.export.export(Cases(), (inputs,)), path, Cases.names)
    found = Interpreter(str(path)).get_signature_runner()(image=inputs.numpy())
    expected = dict(zip(Cases.names, Cases()(inputs), strict=True))
    return {
        name: float((value - torch.from_numpy(found[name])).abs().max() / value.abs().max())
        for name, value in expected.items()
    }


@needs_converter
@pytest.mark.parametrize('name', ['fused', 'expanded'])
def test_shared_heads_are_still_converted_wrongly(name, relative_errors):
    """If this fails, upstream has fixed it: docs/litert.md and graph.replace_layers need it no longer."""
    assert relative_errors[name] > 0.1


@needs_converter
@pytest.mark.parametrize('name', ['product', 'repeated'])
def test_shared_heads_as_matrix_products_are_right(name, relative_errors):
    assert relative_errors[name] < 1e-5


@pytest.mark.long
@needs_converter
def test_hybrid_m_is_right_to_the_end(make_checkpoint, tmp_path, photos):
    checkpoint = make_checkpoint('mnv4_ssdlite_coco-mini', 'mnv4_hybrid_m')
    path = export(str(checkpoint), ['litert'], out_dir=str(tmp_path), log=lambda line: None)[0]
    predictor = load(path, threads=1)
    by = reference(load_model(str(checkpoint), device='cpu'), predictor.meta)
    batches = [prepare(read_image(photo), predictor.meta.input, predictor.meta.resize)[0] for photo in photos[:2]]
    # An untrained Hybrid-M amplifies rounding; a wrong graph differs by half and more.
    assert difference(by, predictor, batches).largest < 1e-2
    description = path.read_bytes()
    start = description.index(b'{\n "format"')
    inside = Meta.from_json(description[start : description.index(b'\n}', start) + 2], path)
    assert inside.source == read_meta(path).source


@pytest.mark.long
@needs_converter
def test_int8_has_the_inputs_and_outputs_of_fp32_and_is_close(ssdlite, tmp_path, photos):
    from ai_edge_litert.interpreter import Interpreter

    folder = str(photos[0].parent)
    single, int8 = (
        export(str(ssdlite), ['litert'], precision=p, out_dir=str(tmp_path), calibration=folder, log=lambda line: None)[
            0
        ]
        for p in ('fp32', 'int8')
    )
    assert int8.stat().st_size < 0.5 * single.stat().st_size
    layers = json.loads(int8.with_name(f'{int8.name}.layers.json').read_text())['layers']
    # The file agrees with the list.
    interpreter = Interpreter(str(int8))
    kinds = [tensor['dtype'] for tensor in interpreter.get_tensor_details()]
    convolutions = [one for one in interpreter._get_ops_details() if one['op_name'] in ('CONV_2D', 'DEPTHWISE_CONV_2D')]
    in_float = sum(kinds[one['inputs'][1]] == np.float32 for one in convolutions)
    assert in_float == sum(layer['in_float'] for layer in layers)
    a, b = load(single), load(int8)
    assert a.meta.input == b.meta.input
    for photo in photos[:3]:
        batch = prepare(read_image(photo), a.meta.input, a.meta.resize)[0]
        (boxes, scores), (near_boxes, near_scores) = a.run(batch), b.run(batch)
        assert near_boxes.dtype == near_scores.dtype == np.float32
        # Decoded in float: int8 has 256 steps.
        assert len(np.unique(near_boxes)) > 1000
        assert np.abs(near_boxes - boxes).mean() < 0.01 * batch.shape[1]
        assert np.corrcoef(near_scores.ravel(), scores.ravel())[0, 1] > 0.85


@needs_converter
def test_a_sensitive_layer_stays_in_float(sensitive_net, tmp_path):
    from ai_edge_litert.interpreter import Interpreter

    net, batches = sensitive_net
    program = torch.export.export(net, (torch.from_numpy(batches[0]),))
    exported = torch.onnx.export(program, input_names=['image'], output_names=['y'], dynamo=True, verbose=False)
    expected = net(torch.from_numpy(batches[0])).detach().numpy()
    found = {}
    for name, layers in (
        ('all', []),
        ('kept', quantize_onnx(exported.model_proto, batches, max_float_share=1).sensitive),
    ):
        path = tmp_path / f'{name}.tflite'
        convert(program, path, ['y'], 'int8', batches, sensitive=layers)
        interpreter = Interpreter(str(path))
        tensors = interpreter.get_tensor_details()
        kinds = [tensor['dtype'] for tensor in tensors if tuple(tensor['shape']) == (8, 3, 3, 8)]
        given = interpreter.get_signature_runner()(image=batches[0])['y']
        found[name] = kinds.count(np.int8), float(np.abs(given - expected).max())
    # Both layers after the first: the sensitive one, and the one that reads its output.
    assert [count for count, _ in found.values()] == [2, 0]
    assert found['kept'][1] < 0.5 * found['all'][1]


@pytest.mark.long  # four conversions
@needs_converter
def test_a_product_of_two_activations_stays_in_float(tmp_path):
    from ai_edge_litert.interpreter import Interpreter

    class Products(nn.Module):
        def forward(self, image: Tensor) -> tuple[Tensor]:
            return ((image @ image.transpose(-1, -2)) @ image,)

    batches = [np.random.default_rng(0).uniform(-1, 1, (1, 2, 5, 7)).astype(np.float32)]
    program = torch.export.export(Products(), (torch.from_numpy(batches[0]),))
    path = tmp_path / 'net.tflite'
    for second, expected in ((False, {np.int8}), (True, {np.int8, np.float32})):
        convert(program, path, ['y'], 'int8', batches, sensitive=[SensitiveLayer(None, 1, False)] * second)
        tensors = Interpreter(str(path)).get_tensor_details()
        # The input of the second product: the output of the first.
        assert {tensor['dtype'] for tensor in tensors if tuple(tensor['shape']) == (2, 5, 5)} == expected
    with pytest.raises(UserError, match='layer 0 of those that stay in float is not in the file'):
        convert(program, path, ['y'], 'int8', batches, sensitive=[SensitiveLayer(None, 2, False)])
    with pytest.raises(UserError, match='layer 0 of those that stay in float is not in the file'):
        convert(
            program, path, ['y'], 'int8', batches, sensitive=[SensitiveLayer(np.ones((2, 3), np.float32), -1, False)]
        )


@needs_converter
def test_weights_that_the_converter_scales_are_found(tmp_path):
    from ai_edge_litert.interpreter import Interpreter

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.other = nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 8, 1)

        def forward(self, image: Tensor) -> tuple[Tensor]:
            return (self.other(self.layer(image) * 0.125),)

    batches = [np.random.default_rng(0).uniform(-1, 1, (1, 3, 5, 7)).astype(np.float32)]
    net, path = Scaled().eval(), tmp_path / 'net.tflite'
    convert(
        torch.export.export(net, (torch.from_numpy(batches[0]),)),
        path,
        ['y'],
        'int8',
        batches,
        sensitive=[SensitiveLayer(net.layer.weight.detach().numpy(), -1, False)],
    )
    kinds = {tuple(tensor['shape']): tensor['dtype'] for tensor in Interpreter(str(path)).get_tensor_details()}
    assert kinds[8, 1, 1, 3] == np.float32
    assert kinds[8, 1, 1, 8] == np.int8


def test_without_its_environment_the_command_is_named(ssdlite, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / 'nowhere'))
    with pytest.raises(
        UserError,
        match=r'litert converts in an environment of its own.*nowhere: `make litert` in a checkout',
    ) as caught:
        export(str(ssdlite), ['litert'], out_dir=str(tmp_path / 'out'))
    assert '\n' not in str(caught.value)
    assert not (tmp_path / 'out').exists()


def test_its_environment_is_looked_for_in_this_folder_and_in_the_checkout(tmp_path, monkeypatch, repository):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    own = tmp_path / FOLDER / 'bin' / 'python'
    in_checkout = repository / FOLDER / 'bin' / 'python'
    assert converter() == (in_checkout if in_checkout.is_file() else own)
    own.parent.mkdir(parents=True)
    own.touch()
    assert converter() == own
    monkeypatch.setenv(VARIABLE, '/opt/python')
    assert converter() == Path('/opt/python')


def test_a_failing_converter_is_one_line(tmp_path, monkeypatch):
    python = tmp_path / 'python'
    python.write_text('#!/bin/sh\necho "Traceback\nImportError: no litert_torch" >&2\nexit 1\n')
    python.chmod(0o755)
    monkeypatch.setenv(VARIABLE, str(python))
    program = torch.export.export(nn.ReLU(), (torch.ones(1),))
    with pytest.raises(UserError, match='failed: ImportError: no litert_torch') as caught:
        convert(program, tmp_path / 'net.tflite', ['y'])
    assert '\n' not in str(caught.value)


def test_check_env_reports_it(load_tool, tmp_path, monkeypatch):
    check_env = load_tool('check_env')
    name, use, repair = next(row for row in check_env.USES if row[0] == 'LiteRT conversion')
    assert name in check_env.OPTIONAL
    assert repair == 'make litert'
    monkeypatch.setenv(VARIABLE, str(tmp_path / 'nowhere'))
    with pytest.raises(ImportError):
        use()
