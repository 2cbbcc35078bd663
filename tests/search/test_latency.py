"""The latency table: blocks, their MACs, the fits on a device whose latencies are known, and its file."""

import json
import random
from typing import ClassVar

import numpy as np
import pytest
from mmengine.config import Config
from stub_checkpoint import write_stub_checkpoint

from mnv4_mm.cli import main
from mnv4_mm.errors import UserError
from mnv4_mm.models.arch import MQA, UIB, Arch, Conv, FusedIB, PlacedRow
from mnv4_mm.models.complexity import count
from mnv4_mm.models.layers import Style
from mnv4_mm.models.mobilenetv4 import build_block
from mnv4_mm.models.space import MEDIUM, SMALL, SPACES
from mnv4_mm.search.blocks import all_blocks, blocks_of, choose_blocks, input_size, layers_of, output_size
from mnv4_mm.search.latency import BlockTimes, Predictor, Subject, errors, read_table, write_table
from mnv4_mm.search.predict import fit_nets, fit_roofline
from mnv4_mm.search.profile import choose_nets, make_table
from mnv4_mm.search.roofline import roofline_features, roofline_ms

SIZES = ((96, 128), (128, 160), (160, 192))
SIZE = SIZES[-1]
BACKBONE = Config(dict(out_indices=(1, 2, 4), output_stride=32))


@pytest.mark.parametrize(('space', 'backbone'), [
    (SMALL, dict(out_indices=(1, 2, 4))),
    (SMALL, dict(out_indices=(0, 1, 3), output_stride=16)),
    (MEDIUM, dict(out_indices=(2,))),
])  # fmt: skip
def test_all_blocks_are_those_of_random_nets(space, backbone):
    every, generator = all_blocks(space, backbone), random.Random(0)
    nets = [space.smallest(), space.largest(), *(space.sample(generator) for _ in range(200))]
    found = {block for genes in nets for block in blocks_of(space.subnet(genes).arch, backbone)}
    assert found <= set(every)
    assert len(set(every)) == len(every)
    assert len(found) > 0.8 * len(every)  # and few that no net has
    chosen = choose_blocks(every, space, backbone, SIZE, 60)
    assert len(set(chosen)) == 60
    assert {(type(one.row), one.stride, one.channels, one.dilation) for one in chosen} == {
        (type(one.row), one.stride, one.channels, one.dilation) for one in every
    }
    assert choose_blocks(every, space, backbone, SIZE, 20) == chosen[:20]
    assert set(choose_blocks(every, space, backbone, SIZE, 10**6)) == set(every)


@pytest.mark.parametrize('row', [
    Conv(3, 2, 24), Conv(1, 1, 960), FusedIB(3, 2, 4, 24), UIB(3, 5, 2, 3, 24), UIB(5, 0, 2, 4, 24),
    UIB(0, 3, 1, 2, 16), UIB(0, 0, 1, 4, 16), UIB(3, 0, 1, 4, 24), MQA(2, 8, 2, 16), MQA(4, 8, 1, 16),
])  # fmt: skip
@pytest.mark.parametrize('dilation', [1, 2])
def test_macs_are_those_of_pytorch(row, dilation):
    block, size = PlacedRow(row, 16, 4, dilation), (44, 64)
    module = build_block(block, Style(dict(type='BN'), dict(type='ReLU'), None))
    layers = layers_of(block, size)
    net = _OnMaps(module, 16, 4)
    assert sum(layer.macs for layer in layers) == count(net, size).macs
    assert net.shape == (1, row.out, *output_size(block, size))
    assert input_size(block, size) == (11, 16)
    weights = [one for one in module.modules() if type(one).__name__ == 'Conv2d']
    assert sum(layer.weight_bytes for layer in layers) == 4 * sum(one.weight.numel() for one in weights)


def _OnMaps(module, channels, stride):  # noqa: N802
    from torch import nn

    class OnMaps(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = module

        def forward(self, image):
            x = self.net(image.new_zeros(1, channels, *(side // stride for side in image.shape[2:])))
            OnMaps.shape = tuple(x.shape)
            return x

    return OnMaps()


class Device:
    """A device on which a block takes a known time: that of a roofline, changed by up to a share of it."""

    MS: ClassVar = dict(
        conv=1e-8, depthwise=8e-8, pointwise=1.2e-8, attention=3e-8, bytes=2e-9, layers=2e-3, constant=0.01
    )

    def __init__(self, spread, space=SMALL):
        self.space, self.spread = space, spread
        self.every = all_blocks(space, BACKBONE)
        generator = random.Random(5)
        self.own = {block: 1 + spread * generator.uniform(-1, 1) for block in self.every}
        self.blocks = {block: self.ms(block, SIZE) for block in self.every}

    def ms(self, block, size):
        return self.own[block] * roofline_ms(self.MS, roofline_features(layers_of(block, size)))

    def net(self, genes):
        """Each block takes 0.01 ms less than alone; the stem and each channel of C4 take a time for each pixel."""
        subnet = self.space.subnet(genes)
        size, blocks = SIZES[self.space.scales.index(subnet.scale)], blocks_of(subnet.arch, BACKBONE)
        rest = 1e-5 + 5e-8 * subnet.arch.stages[2][-1].out
        return rest * size[0] * size[1] + sum(self.ms(block, size) - 0.01 for block in blocks)


class Supernet:
    space, backbone = SMALL, BACKBONE
    subject = Subject('small', SIZES, 'digest')


def table_of(device, blocks, nets=24, check=50):
    fitted, checked = choose_nets(SMALL, nets, check)
    assert len(set(fitted)) == nets
    assert not set(fitted) & set(checked)
    chosen = choose_blocks(device.every, SMALL, BACKBONE, SIZE, blocks) if blocks else []
    return make_table(
        Supernet(), 'onnx', 1, dict(cpu='made up'),
        {block: device.blocks[block] for block in chosen},
        {genes: device.net(genes) for genes in fitted}, {genes: device.net(genes) for genes in checked},
    )  # fmt: skip


def test_a_device_whose_blocks_are_all_measured_is_predicted_well():
    table = table_of(Device(0.5), 10**6)
    assert all(one.measured for one in table.blocks)
    largest = [net for net in table.checked if SMALL.subnet(net.genes).scale == 1]
    assert errors(largest)[1] < 0.01
    assert errors(table.checked)[1] < 0.02  # blocks of a smaller input follow from the roofline


def test_blocks_that_were_not_measured_follow_from_the_others():
    device = Device(0.0)
    table = table_of(device, 60)
    assert sum(one.measured for one in table.blocks) == 60
    for one in table.blocks:
        assert one.ms == pytest.approx(device.blocks[one.block], rel=1e-6)
    assert table.roofline == pytest.approx(device.MS, rel=1e-4)
    assert errors(table.checked)[1] < 1e-3
    # Blocks that are 20 % off at most, a third of which is measured.
    table = table_of(Device(0.2), 150)
    assert errors(table.checked)[0] < 0.02
    assert errors(table.checked)[1] < 0.05


def test_nets_alone_predict_others():
    """Lines of a browser have no blocks."""
    table = table_of(Device(0.05), 0, nets=40)
    assert not any(one.measured for one in table.blocks)
    assert errors(table.checked)[0] < 0.03
    with pytest.raises(UserError, match='2 nets could be measured, and a latency table needs at least 3'):
        table_of(Device(0.0), 0, nets=2)


def test_a_fit_does_not_follow_noise():
    """The widths mean nothing here: on other nets, their coefficients must not cost more than the noise."""
    generator = np.random.default_rng(0)

    def some(number):
        features = [
            dict(blocks=generator.uniform(5, 15), count=20 + generator.integers(6), width=generator.integers(3) * 16.0)
            for _ in range(number)
        ]
        return features, [one['blocks'] + 1 + 0.1 * generator.standard_normal() for one in features]

    coefficients = fit_nets(*some(12))
    features, ms = some(200)
    found = [coefficients['constant'] + sum(coefficients[name] * one[name] for name in one) for one in features]
    assert np.std(np.array(found) - ms) < 0.13
    # A constant feature has no coefficient of its own.
    assert fit_nets([dict(blocks=x, width=960.0) for x in (1.0, 2.0, 3.0)], [2.0, 3.0, 4.0]) == pytest.approx(
        dict(constant=1.0, blocks=1.0, width=0.0)
    )


def test_a_roofline_is_never_negative():
    generator = np.random.default_rng(0)
    features = generator.uniform(0, 1, (40, 7))
    assert min(fit_roofline(features, generator.uniform(0.1, 1, 40)).values()) >= 0


@pytest.fixture(scope='module')
def table():
    return table_of(Device(0.1), 40, check=5)


def test_a_table_survives_its_file(table, tmp_path):
    write_table(table, tmp_path / 'table.json')
    read = read_table(tmp_path / 'table.json')
    assert read == table
    predict = Predictor(read, Supernet.subject, BACKBONE)
    for net in table.checked:
        assert predict(net.genes) == pytest.approx(net.predicted)
    median, p95 = errors(table.checked)
    first, second = table.lines()
    assert first == 'onnx, 1 thread, on made up: 40 of 453 blocks and 24 nets measured'
    assert second == f'error of the prediction on 5 other nets: median {median:.1%}, 95th percentile {p95:.1%}'
    assert '--check N' in list(table._replace(checked=()).lines())[1]


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (dict(space='medium'), "the table is of the search space 'small', the supernet has 'medium'"),
        (
            dict(sizes=((64, 32),)),
            'the table is of images of 128x96, 160x128, 192x160 pixels, the supernet takes 32x64',
        ),
        (dict(model='other'), 'another head'),
    ],
)
def test_a_table_of_something_else_is_refused(changes, message, table):
    with pytest.raises(UserError, match=message):
        Predictor(table, Supernet.subject._replace(**changes), BACKBONE)
    with pytest.raises(UserError, match='the table lacks blocks'):
        Predictor(table._replace(blocks=table.blocks[1:]), Supernet.subject, BACKBONE)


DAMAGES = {
    'no key': lambda content: content.pop('blocks'),
    'another key': lambda content: content.update(more=1),
    'another format': lambda content: content.update(format=1),
    'a size of three': lambda content: content.update(sizes=[[1, 2, 3]]),
    'text for a number': lambda content: content['blocks'][0].update(ms='1'),
    'no number': lambda content: content['coefficients'].update(constant=float('nan')),
    'an unknown row': lambda content: content['blocks'][0].update(row=['Nothing', 1]),
    'a row cut short': lambda content: content['blocks'][0].update(row=['UIB', 3]),
    'a list for a dict': lambda content: content.update(machine=[1]),
    'nets of no time': lambda content: content['nets'][0].update(ms=0),
}


@pytest.mark.parametrize('damage', DAMAGES)
def test_a_damaged_table_is_refused(damage, table, tmp_path, capsys):
    path = tmp_path / 'table.json'
    write_table(table, path)
    content = json.loads(path.read_text())
    DAMAGES[damage](content)
    path.write_text(json.dumps(content))
    write_stub_checkpoint(tmp_path / 'a.pth')
    assert main(['search', 'run', str(tmp_path / 'a.pth'), '--latency', str(path)]) == 2
    error = capsys.readouterr().err
    assert error == f'error: --latency {path} is not a latency table, as `mnv4 search profile` writes it\n'
    path.write_text(json.dumps(content)[:1000])
    with pytest.raises(UserError, match='is not a latency table'):
        read_table(path)


def test_every_space_can_be_priced():
    for name, space in SPACES.items():
        times = dict.fromkeys(all_blocks(space, BACKBONE), 1.0)
        features = BlockTimes(Subject(name, SIZES, ''), BACKBONE, times, Device.MS).features(space.largest())
        assert features['blocks'] == features['count'] == len(blocks_of(space.subnet(space.largest()).arch, BACKBONE))
        assert isinstance(space.subnet(space.largest()).arch, Arch)
