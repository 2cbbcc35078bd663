"""The roofline: its arithmetic, the counted layers, and the committed records and their page."""

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import parser
from torch import nn

from mnv4_mm.cli import main
from mnv4_mm.deploy.verify import MismatchError
from mnv4_mm.errors import UserError
from mnv4_mm.models import MobileNetV4
from mnv4_mm.models.complexity import count
from mnv4_mm.transfer import pages, peak
from mnv4_mm.transfer.exported import Latency, check_output, convert, measure_latencies, net_graph
from mnv4_mm.transfer.layers import KINDS, Layer, combine, count_layers, kind_times
from mnv4_mm.transfer.nets import NETS, PEERS
from mnv4_mm.transfer.roofline import cached_time, fit, mean_shares, predicted_time, residuals, shares, spearman
from mnv4_mm.transfer.roofline_measure import build, build_net, measure_nets
from mnv4_mm.transfer.roofline_page import RECORD_KEYS, Roofline, load_roofline, summary

COMPUTE = Layer('conv', 1000, 10, 40)  # 20 MACs per byte
MEMORY = Layer('depthwise', 100, 10, 90)  # 1 MAC per byte


def test_a_layer_takes_the_longer_of_arithmetic_and_memory():
    layers = [COMPUTE, MEMORY._replace(repeats=2)]
    assert predicted_time(layers, 0) == 1200  # MACs alone
    assert predicted_time(layers, 10) == 1000 + 2 * 1000
    assert predicted_time(layers, 100) == 5000 + 2 * 10_000


def test_shares_say_which_limit_binds():
    assert shares([COMPUTE, MEMORY], 10) == {('conv', False): 0.5, ('depthwise', True): 0.5}
    assert shares([COMPUTE, MEMORY], 0) == {('conv', False): 1000 / 1100, ('depthwise', False): 100 / 1100}
    assert mean_shares([[COMPUTE], [MEMORY]], 10) == {('conv', False): 0.5, ('depthwise', True): 0.5}


def test_fit_finds_the_ridge_point_that_the_latencies_were_made_with():
    random = np.random.default_rng(0)
    nets = [
        [Layer('conv', int(macs), 0, int(size)) for macs, size in random.integers(1, 10**6, (20, 2))] for _ in range(40)
    ]
    latencies = [predicted_time(layers, 7.0) for layers in nets]
    found = fit(nets, latencies, (0.0, 1.0, 3.0, 7.0, 20.0, 100.0))
    assert (found.best, found.best_range, found.best_spearman) == (7.0, (7.0, 7.0), pytest.approx(1))
    assert found.macs == found.spearman[0] < 0.9


def test_spearman_compares_ranks():
    assert spearman([1, 2, 3], [10, 100, 1000]) == pytest.approx(1)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)


def test_residuals_compare_time_by_kind():
    rows = residuals([[COMPUTE, MEMORY]], [{'conv': 3.0, 'norm': 1.0}], macs=1e6, bandwidth=1e5)
    assert [(row.kind, row.measured_ms, row.predicted_ms) for row in rows[:2]] == [('conv', 3, 1), ('norm', 1, 0)]
    assert rows[2][1:] == (100, 100, 0, pytest.approx(1))


def test_equal_layers_are_counted():
    norm = Layer('norm', 0, 4, 10)
    assert combine(iter([COMPUTE, norm, COMPUTE])) == [COMPUTE._replace(repeats=2), norm]


def test_small_layers_have_the_bandwidth_of_the_caches():
    copies = {'100': 1000.0, '10000': 10.0}
    small, large = Layer('norm', 0, 0, 200), Layer('norm', 0, 0, 200_000)
    assert cached_time([small], 1.0, copies) == pytest.approx(0.2)
    assert cached_time([small._replace(repeats=3), large], 1.0, copies) == pytest.approx(0.6 + 20_000)
    assert cached_time([Layer('norm', 0, 0, 2000)], 1.0, copies) == pytest.approx(2000 / 100)  # half way in logarithms
    assert cached_time([small._replace(macs=7)], 1.0, copies) == 7


class Mixed(nn.Module):
    """One layer of most kinds."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.grouped = nn.Conv2d(8, 8, 3, 1, 1, groups=4)
        self.depthwise = nn.Conv2d(8, 16, 5, 1, 2, groups=8)
        self.pointwise = nn.Conv2d(16, 4, 1)
        self.fc = nn.Linear(4, 10)
        nn.init.ones_(self.conv[1].bias)  # the exporter omits a folded bias of zeros

    def forward(self, x):
        x = self.pointwise(self.depthwise(self.grouped(self.conv(x))))
        tokens = x.flatten(2)  # (1, 4, 64)
        x = x + ((tokens.transpose(1, 2) @ tokens).softmax(-1) @ tokens.transpose(1, 2)).transpose(1, 2).reshape(
            x.shape
        )
        return self.fc(x.mean((2, 3)))


@pytest.fixture
def mixed(tmp_path):
    net = Mixed().eval()
    return net, convert(net_graph(net, (16, 16)), tmp_path, 'mixed')


def test_layers_of_a_file_have_the_counted_macs_and_bytes(mixed):
    _, path = mixed
    layers = {layer.kind: layer for layer in count_layers(path, np.zeros((1, 3, 16, 16), np.float32))}
    # Kind -> MACs, bytes of weights with the bias, bytes of the input and the output; norm and activation are fused.
    expected = {
        'conv': (64 * 8 * 27, 4 * (8 * 27 + 8), 4 * (3 * 256 + 8 * 64)),
        'grouped': (64 * 8 * 18, 4 * (8 * 18 + 8), 4 * (2 * 8 * 64)),
        'depthwise': (64 * 16 * 25, 4 * (16 * 25 + 16), 4 * (24 * 64)),
        'pointwise': (64 * 4 * 16, 4 * (4 * 16 + 4), 4 * (20 * 64)),
        'fc': (40, 4 * (40 + 10), 4 * 14),
    }
    assert {kind: layers[kind][1:4] for kind in expected} == expected
    assert layers['attention'].macs == 64 * 64 * 4
    assert set(layers) <= set(KINDS)
    assert layers['elementwise'].activation_bytes == 3 * 4 * 4 * 64  # the sum; the ReLU is fused


def test_a_file_of_another_net_is_not_measured(mixed):
    net, path = mixed
    graph = net_graph(net, (16, 16))
    assert check_output(graph, path).shape == (1, 3, 16, 16)
    net.fc.bias[0] += 0.1
    with pytest.raises(MismatchError, match='differ from PyTorch'):
        check_output(graph, path)


def test_time_of_each_kind_is_measured(mixed):
    times = kind_times(mixed[1], np.zeros((1, 3, 16, 16), np.float32), runs=2)
    assert {'conv', 'grouped', 'depthwise', 'fc', 'attention'} <= set(times) <= set(KINDS)
    assert all(value > 0 for kind, value in times.items() if kind != 'layout')


def test_a_transposed_first_operand_is_counted_once(tmp_path):
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 18]> net (float[1, 24, 6] x) => (float[1, 6, 6] y) '
        '{ t = Transpose <perm = [0, 2, 1]> (x)  y = MatMul (t, x) }'
    )
    path = tmp_path / 'net.onnx'
    onnx.save(model, path)
    (layer,) = [layer for layer in count_layers(path, np.ones((1, 24, 6), np.float32)) if layer.macs]
    assert (layer.kind, layer.macs) == ('attention', 6 * 6 * 24)


# GMACs: the paper's table 6 for Conv-S; timm's model cards for others, which count at the same size.
PUBLISHED = {'mnv4_conv_s': 0.19, 'timm:mobilenetv3_large_100': 0.22, 'timm:resnet18': 1.82}


@pytest.mark.parametrize(
    'name',
    [
        'mnv4_conv_s',
        'timm:resnet18',
        pytest.param('timm:mobilenetv3_large_100', marks=pytest.mark.long),
        pytest.param('timm:fastvit_sa12', marks=pytest.mark.long),
        pytest.param('mnv4_hybrid_m_mhsa', marks=pytest.mark.long),
    ],
)
def test_macs_are_those_of_torch_and_the_published_ones(name, tmp_path):
    graph, parameters = build(name)
    path = convert(graph, tmp_path, 'net')
    macs = sum(layer.repeats * layer.macs for layer in count_layers(path, graph.example().numpy()))
    reference = count(*build_net(name))
    assert parameters == reference.params
    assert macs == pytest.approx(reference.macs, rel=0.002)
    if name in PUBLISHED:
        assert macs / 1e9 == pytest.approx(PUBLISHED[name], abs=0.01)


@pytest.mark.parametrize('arch', ['hybrid_m_mhsa', 'hybrid_m_kv1'])
def test_attention_variants_of_hybrid_m(arch):
    published, variant = (sum(p.numel() for p in MobileNetV4(name, (3,)).parameters()) for name in ('hybrid_m', arch))
    # Keys and values: three more heads of 64 in each of four blocks of 160 and of 256 channels.
    more = 2 * 3 * 64 * 4 * (160 + 256)
    less = 4 * 2 * 160 * (9 + 2)  # depthwise convolutions and norms
    assert variant - published == (more if arch == 'hybrid_m_mhsa' else -less)


def test_one_key_head_repeated_is_multi_head_attention():
    torch.manual_seed(0)
    mqa, mhsa = (MobileNetV4(arch, (3,)).eval() for arch in ('hybrid_m', 'hybrid_m_mhsa'))
    state = mqa.state_dict()
    for key, value in mhsa.state_dict().items():
        if value.shape != state[key].shape:
            state[key] = state[key].repeat(4, 1, 1, 1)
    mhsa.load_state_dict(state)
    with torch.no_grad():
        for module in (mqa, mhsa):
            for name, parameter in module.named_parameters():
                if name.endswith('gamma'):
                    parameter.fill_(1)
        x = torch.randn(1, 3, 96, 64)
        a, b = mqa(x)[0], mhsa(x)[0]
    assert a.std() > 1e-3
    assert torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(a.abs().max()))


def test_every_net_and_peer_exists():
    timm = pytest.importorskip('timm', minversion='1.0.29', reason='CPUBone needs timm 1.0.29')
    assert all(timm.is_model(name) for name in PEERS)
    assert len(NETS) == len(set(NETS))


def test_peak_is_measured_and_gemm_is_counted_in_macs(monkeypatch):
    monkeypatch.setattr(peak, 'GEMM_SIZES', (64, 256))
    monkeypatch.setattr(peak, 'COPY_SIZES', (2**14, 2**20))
    found = peak.measure_peak(seconds=0.02)
    assert found.ridge == found.macs / found.bandwidth
    assert 1e8 < found.macs < 1e13
    assert found.cached[str(2**20)] == found.bandwidth
    calls = []
    call = peak._copy(2**20)
    assert call.repeats == 4
    monkeypatch.setattr(peak.np, 'copyto', lambda target, source: calls.append(source.nbytes))
    call()
    assert calls == [2**20] * 4


def test_latency_is_the_median_of_the_rounds(mixed):
    _, path = mixed
    found = measure_latencies({'a': (path, np.zeros((1, 3, 16, 16), np.float32))}, 3, 0.001, log=lambda line: None)
    assert found['a'] == Latency(sorted(found['a'].rounds)[1], found['a'].rounds, found['a'].cpu)
    assert 0 < found['a'].median < 1000


@pytest.fixture(scope='module')
def committed(repository):
    return load_roofline(repository / 'docs/results/roofline.jsonl')


def test_records_are_complete_and_small(committed, repository):
    assert (repository / 'docs/results/roofline.jsonl').stat().st_size < 300_000
    assert {record['net'] for record in committed.records} == set(NETS)
    assert len(committed.nets) >= 16
    for record in committed.records:
        layers = committed.layers[record['net']]
        assert sum(layer.repeats * layer.macs for layer in layers) == record['macs'], record['net']
        assert record['latency_ms'] == sorted(record['round_ms'])[len(record['round_ms']) // 2]
        assert min(record['machine']['load']) >= 0
        assert {'cpu', 'versions', 'commit', 'peak'} <= record['machine'].keys()


def test_recorded_macs_are_published_ones(committed):
    published = {
        'mnv4_conv_s': 0.19,
        'mnv4_conv_m': 1.10,
        'mnv4_hybrid_m': 1.29,
        'mnv4_conv_l': 6.43,
        'mnv4_hybrid_l': 7.77,
    }
    macs = {record['net']: record['macs'] / 1e9 for record in committed.records}
    for name, value in published.items():  # timm's, which rounds and counts more than convolutions and products
        assert macs[name] == pytest.approx(value, rel=0.03), name


def test_page_is_that_of_the_records(run_check):
    assert run_check('roofline') == 0
    assert run_check('blocks') == 0


@pytest.fixture
def run_check():
    return lambda name: main([name, '--check'])


def record(name, layers, latency, **changes):
    machine = dict(
        cpu='c', instructions=[], cores=1, load=[0.0, 0.0], python='3', versions={}, commit='x',
        peak=dict(macs=1e9, bandwidth=1e8, cached={'1024': 1e9}),
    )  # fmt: skip
    return dict(
        net=name, input=[1, 3, 8, 8], dtype='float32', parameters=1, macs=sum(one[1] for one in layers), weight_bytes=0,
        activation_bytes=0, latency_ms=latency, round_ms=[latency], cpu_ms=latency, kind_ms={'conv': latency},
        layers=layers, machine=machine, date='2026-01-01', **changes,
    )  # fmt: skip


@pytest.fixture
def written(tmp_path):
    records = [record(f'timm:{i}', [['conv', 1000 * i, 0, 10 * i, 1]], float(i)) for i in range(1, 5)]
    pages.write_records(tmp_path / 'r.jsonl', records)
    return tmp_path, records


@pytest.mark.long
def test_command_writes_the_page_and_check_notices_changes(written, capsys):
    folder, records = written
    arguments = ['roofline', '--records', str(folder / 'r.jsonl'), '--page', str(folder / 'p.md')]
    assert main(arguments) == 0
    assert 'MACs alone 1.000' in capsys.readouterr().out
    assert main([*arguments, '--check']) == 0
    changed = [dict(one, latency_ms=5 - one['latency_ms'], round_ms=[5 - one['latency_ms']]) for one in records]
    pages.write_records(folder / 'r.jsonl', changed)
    assert main([*arguments, '--check']) == 1
    assert 'is not that of' in capsys.readouterr().out
    assert main(arguments) == 0
    assert 'MACs alone -1.000' in capsys.readouterr().out
    (folder / 'p.png').write_bytes(b'')
    assert main([*arguments, '--check']) == 1  # the page has no plot


def test_new_records_replace_those_of_the_same_net(written):
    folder, records = written
    new = record('timm:2', [['conv', 1, 0, 1, 1]], 9.0)
    merged = pages.merge_records(folder / 'r.jsonl', [new], ('net',))
    assert [one['net'] for one in merged] == ['timm:1', 'timm:3', 'timm:4', 'timm:2']
    assert merged[-1]['latency_ms'] == 9.0
    assert pages.merge_records(folder / 'none.jsonl', records, ('net',)) == records


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(layers=3), 'not a record of a roofline'),
        (dict(machine={}), 'not a record of a roofline'),
        (dict(machine=dict(cpu='other', commit='x', peak={})), 'of several measurements'),
        (dict(net='mnv4_ssdlite_coco'), 'at least 3 classification nets'),
    ],
)
def test_records_that_cannot_be_ranked_are_refused(changes, message, written):
    folder, records = written
    pages.write_records(folder / 'r.jsonl', [*records[:2], {**records[2], **changes}])
    with pytest.raises(UserError, match=message):
        load_roofline(folder / 'r.jsonl')


@pytest.mark.parametrize('line', ['', 'text', '[]', '{"net": 1}'])
def test_other_files_are_refused(line, tmp_path, capsys):
    (tmp_path / 'r.jsonl').write_text(line and line + '\n')
    assert main(['roofline', '--records', str(tmp_path / 'r.jsonl'), '--page', str(tmp_path / 'p.md')]) == 2
    assert capsys.readouterr().err.startswith('error: --records')
    assert not (tmp_path / 'p.md').exists()


def test_rate_of_each_kind_leaves_the_net_itself_out():
    result = Roofline([record(f'timm:{i}', [['conv', 1000 * i, 0, 0, 1]], float(i)) for i in range(1, 6)])
    assert result.by_kind(result.nets) == pytest.approx(1)
    assert len(summary(result)) == 3


@pytest.mark.long
def test_a_measured_record_has_all_keys_and_names_its_net():
    (found,) = measure_nets(['mnv4_conv_s'], rounds=1, seconds=0.01, log=lambda line: None)
    assert set(RECORD_KEYS) <= found.keys()
    assert json.loads(json.dumps(found)) == found
    assert found['machine']['peak']['macs'] > 1e9
