"""Compilation for NPUs: shares, estimates, names of the layers that fall back, and the errors."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from mnv4_mm.deploy.arguments import check_npus
from mnv4_mm.deploy.artifacts import Artifact
from mnv4_mm.deploy.compare import _place
from mnv4_mm.deploy.graph import ConvolvedPixels, Pixels
from mnv4_mm.deploy.npu import NPUS
from mnv4_mm.deploy.npu.base import FOLDER, VARIABLE, Operator, compilers, placement
from mnv4_mm.deploy.quantize import quantize_onnx
from mnv4_mm.deploy.sensitivity import SensitiveLayer
from mnv4_mm.deploy.table import Row, markdown, npu_details, write_json
from mnv4_mm.deploy.targets import TARGETS
from mnv4_mm.deploy.targets.litert import convert
from mnv4_mm.errors import UserError
from mnv4_mm.runtime.meta import Input

ETHOS, HEXAGON = NPUS['ethos-u55-128'], NPUS['hexagon-v73']
PIXELS = Input((32, 64), 'NHWC', 'uint8', 'RGB', False, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
needs_vela = pytest.mark.skipif(
    bool(ETHOS.absent() or TARGETS['litert'].absent(convert=True)), reason='needs `make litert npu`'
)
needs_qnn = pytest.mark.skipif(bool(HEXAGON.absent()), reason='needs `make npu`')


def chain(*kinds: str) -> list[Operator]:
    return [Operator(kind, f'layer{i}', (f't{i}',), (f't{i + 1}',)) for i, kind in enumerate(kinds)]


def test_the_net_begins_and_ends_with_weights():
    operators = chain('CAST', 'PAD', 'CONV', 'RELU', 'CONV', 'SOFTMAX')
    found = placement(operators, ['CONV'], [True, False, False, True, False, True], cycles=1000, milliseconds=2.0)
    assert (found.operators, found.on_npu, found.net, found.net_on_npu) == (6, 3, 3, 2)
    assert found.fallback == ('layer3 (RELU)',)
    assert found.around == dict(CAST=1, SOFTMAX=1)
    assert str(found) == '66 % of the net, 50 % of all, 2.00 ms'


def test_a_share_is_never_rounded_up_to_100_percent():
    operators = chain(*['CONV'] * 1000)
    assert str(placement(operators, ['CONV'], [True] + [False] * 999)).startswith('99 % of the net')
    assert str(placement(operators, ['CONV'], [False] * 1000)) == '100 % of the net, 100 % of all'


def test_a_compiler_that_is_not_installed_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / 'bin/python'))
    for name, package in (('ethos-u85-512', 'ethos-u-vela'), ('hexagon-v79', 'onnxruntime-qnn')):
        with pytest.raises(UserError, match=f'{name} is compiled by {package}.*`make npu`') as caught:
            check_npus([name])
        assert '\n' not in str(caught.value)


def test_its_environment_is_looked_for_in_this_folder(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    own = tmp_path / FOLDER / 'bin' / 'python'
    own.parent.mkdir(parents=True)
    own.touch()
    assert compilers() == own


def test_pixels_are_normalised_alike():
    pixels = torch.randint(0, 256, (2, 32, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ConvolvedPixels(PIXELS)(pixels), Pixels(PIXELS)(pixels))


class Net(nn.Module):
    """Three layers on pixels, with padding behind the normalisation, and a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.pixels = ConvolvedPixels(PIXELS)
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.middle = nn.Conv2d(16, 16, 3, padding=1)
        self.last = nn.Conv2d(16, 4, 1)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.last(self.middle(self.stem(self.pixels(image)).relu()).relu()).softmax(1),)


@pytest.fixture(scope='module')
def small():
    torch.manual_seed(0)
    net = Net().eval()
    rng = np.random.default_rng(0)
    # No image has 0 or 255: the quantisation of pixels must not depend on that.
    batches = [rng.integers(20, 200, (1, 32, 64, 3), dtype=np.uint8) for _ in range(4)]
    return net, torch.export.export(net, (torch.from_numpy(batches[0]),)), batches


def litert_file(small, path, sensitive=()):
    _, program, batches = small
    layers = {f'{name}.weight': name for name in ('pixels', 'stem', 'middle', 'last')}
    convert(program, path, ['y'], 'int8', batches, sensitive=sensitive, layers=layers)
    return path


@needs_vela
def test_all_of_a_net_is_on_an_ethos_u_but_layers_in_float(small, tmp_path):
    from ai_edge_litert.interpreter import Interpreter

    net, _, batches = small
    path = litert_file(small, tmp_path / 'net.tflite')
    found = ETHOS.place(path)
    assert found.net_on_npu == found.net >= 4
    assert found.fallback == ()
    # Nothing before the net: uint8 becomes int8 on the NPU.
    assert set(found.around) <= {'DEQUANTIZE', 'SOFTMAX', 'TRANSPOSE'}
    assert found.around['SOFTMAX'] == 1
    assert found.cycles > 1000
    assert found.milliseconds == pytest.approx(found.cycles / 500e6 * 1e3)  # Vela's clock for this system
    assert found.sram > 1
    interpreter = Interpreter(str(path))
    tensors = {tensor['name']: tensor for tensor in interpreter.get_tensor_details()}
    assert {'pixels', 'stem', 'middle', 'last'} <= tensors.keys()
    # All 256 values of a pixel, whatever the images.
    rounded = [one['quantization'] for one in tensors.values() if one['name'].endswith('CAST_quantized')]
    assert rounded == [(1.0, -128)]
    expected = net(torch.from_numpy(batches[0]))[0].detach().numpy()
    assert np.abs(interpreter.get_signature_runner()(image=batches[0])['y'] - expected).max() < 0.03
    kept = SensitiveLayer(net.middle.weight.detach().numpy(), -1, False)
    mixed = ETHOS.place(litert_file(small, tmp_path / 'mixed.tflite', [kept]))
    assert mixed.net_on_npu < mixed.net
    assert 'middle (CONV_2D)' in mixed.fallback
    assert 'stem (CONV_2D)' not in mixed.fallback


@needs_vela
def test_a_file_that_vela_refuses_is_one_line(tmp_path):
    path = tmp_path / 'net.tflite'
    path.write_bytes(b'not a net')
    with pytest.raises(UserError, match=r'net.tflite is not compiled for ethos-u55-128: ') as caught:
        ETHOS.place(path)
    assert '\n' not in str(caught.value)


@needs_qnn
def test_what_hexagon_does_not_take_is_named(small, tmp_path):
    import onnx

    _, program, batches = small
    exported = torch.onnx.export(program, input_names=['image'], output_names=['y'], dynamo=True, verbose=False)
    model = quantize_onnx(exported.model_proto, batches).model
    onnx.save(model, tmp_path / 'net.onnx')
    found = HEXAGON.place(tmp_path / 'net.onnx')
    assert found.net_on_npu == found.net >= 4
    assert (found.milliseconds, found.cycles) == (None, None)  # its compiler estimates none
    counted = sum(node.op_type not in ('QuantizeLinear', 'DequantizeLinear') for node in model.graph.node)
    assert found.operators == counted
    # Behind the net, an operator that it lacks.
    (output,) = model.graph.output
    model.graph.node.append(onnx.helper.make_node('NonZero', [output.name], ['places']))
    model.graph.output.append(onnx.helper.make_tensor_value_info('places', onnx.TensorProto.INT64, [4, None]))
    onnx.save(model, tmp_path / 'more.onnx')
    more = HEXAGON.place(tmp_path / 'more.onnx')
    assert more.operators == counted + 1
    assert more.around['NonZero'] == 1
    (tmp_path / 'net.onnx').write_bytes(b'not a net')
    with pytest.raises(UserError, match=r'net.onnx is not compiled for hexagon-v73: '):
        HEXAGON.place(tmp_path / 'net.onnx')


def test_the_table_has_a_column_for_each_npu(tmp_path):
    found = placement(chain('CONV', 'SOFTMAX'), ['CONV'], [False, True], cycles=500, milliseconds=1, sram=2, memory=3)
    rows = [Row('PyTorch'), Row('a.tflite', npu={ETHOS.name: found})]
    header, _, pytorch, file = markdown(rows, 'AP', [ETHOS.name, HEXAGON.name, ETHOS.name])
    assert header.endswith('| on ethos-u55-128 | on hexagon-v73 | verdict |')
    assert header.count('|') == pytorch.count('|') == file.count('|')
    assert '| 100 % of the net, 50 % of all, 1.00 ms |  |' in file
    (line,) = npu_details(rows)
    assert line.startswith('a.tflite on ethos-u55-128: 500 cycles, 2 KiB of SRAM, 3 KiB of other memory; all 1 ')
    assert line.endswith('around the net on the CPU: 1 SOFTMAX')
    write_json(tmp_path / 'table.json', rows, 'AP')
    stored = json.loads((tmp_path / 'table.json').read_text())['rows'][1]['npu'][ETHOS.name]
    assert (stored['cycles'], stored['net'], stored['around']) == (500, 1, dict(SOFTMAX=1))


def test_a_file_that_the_compiler_refuses_fails(tmp_path, monkeypatch):
    def refuse(path):
        raise UserError('net.tflite is not compiled for ethos-u55-128: no reason given')

    monkeypatch.setattr(ETHOS, 'place', refuse)
    monkeypatch.setattr(type(ETHOS), 'takes', lambda self, meta: True)
    row = Row('net.tflite', verdict='ok')
    _place(row, Artifact(tmp_path / 'net.tflite', None), [ETHOS.name])
    assert not row.passes
    assert row.verdict.endswith('no reason given')
