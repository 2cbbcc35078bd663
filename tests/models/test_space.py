"""Search spaces, and nets that take a part of the weights of the largest one."""

import random

import numpy as np
import pytest
import torch
from torch.func import functional_call

from mnv4_mm.errors import UserError
from mnv4_mm.models.arch import ARCHS, CONV_M, CONV_S, HYBRID_M, MQA, UIB, arch_from_dict, arch_to_dict
from mnv4_mm.models.mobilenetv4 import MobileNetV4
from mnv4_mm.models.space import SMALL, SPACES, UIBChoices, published_nets
from mnv4_mm.models.supernet import subnet_state


def random_genes(space, count, seed=0):
    generator = random.Random(seed)
    return [space.sample(generator) for _ in range(count)]


@pytest.mark.parametrize('name', SPACES)
def test_every_net_can_be_written_as_genes_and_back(name):
    space = SPACES[name]
    for genes in [space.smallest(), space.largest(), *random_genes(space, 200)]:
        subnet = space.subnet(genes)
        assert space.canonical(genes) == genes
        # Other rows may be left out than those the genes name, but the net is the same.
        assert space.subnet(space.genes(subnet.arch)).arch == subnet.arch
        assert [len(rows) for rows in subnet.rows] == [len(stage) for stage in subnet.arch.stages]


@pytest.mark.parametrize(('name', 'arch'), [('small', CONV_S), ('medium', CONV_M)])
def test_published_nets_are_in_their_space(name, arch):
    space = SPACES[name]
    assert space.subnet(space.genes(arch)).arch == arch


def test_every_form_kernel_and_width_is_sampled():
    rows = [row for genes in random_genes(SMALL, 300) for stage in SMALL.subnet(genes).arch.stages for row in stage]
    blocks = [row for row in rows if isinstance(row, UIB)]
    forms = {(bool(row.start_dw), bool(row.middle_dw)) for row in blocks if row.stride == 1}
    assert len(forms) == 4
    assert {row.start_dw for row in blocks} == {row.middle_dw for row in blocks} == {0, 3, 5}
    assert {row.expand for row in blocks} == {2, 3, 4, 6}
    assert {row.out for row in blocks} == {64, 80, 96, 112, 128}
    assert any(isinstance(row, MQA) for row in rows)
    assert all(row.start_dw or row.middle_dw for row in blocks if row.stride == 2)


@pytest.mark.parametrize('name', SPACES)
def test_shallow_nets_are_sampled_as_often_as_deep_ones(name):
    """Each number of UIB rows that are left out in a stage has the same probability."""
    space, count = SPACES[name], 3000
    for stage, rows in enumerate(space.stages):
        optional = {i for i, row in enumerate(rows.rows) if isinstance(row, UIBChoices) and row.stride == 1}
        kept = [len(optional.intersection(space.subnet(genes).rows[stage])) for genes in random_genes(space, count)]
        share = 1 / (len(optional) + 1)
        bound = 5 * (share * (1 - share) / count) ** 0.5
        assert np.allclose(np.bincount(kept) / count, share, rtol=0, atol=bound)


def test_nets_outside_of_a_space_are_refused():
    with pytest.raises(UserError, match='not in the search space'):
        SMALL.genes(HYBRID_M)
    with pytest.raises(UserError, match=r'genes must be 32 indices \(C2.width below 2'):
        SMALL.subnet((0, 1))
    with pytest.raises(UserError, match=r'genes must be 32 indices'):
        SMALL.subnet((7, *SMALL.largest()[1:]))


@pytest.mark.parametrize('name', ARCHS)
def test_a_table_survives_a_config(name):
    assert arch_from_dict(arch_to_dict(ARCHS[name])) == ARCHS[name]


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(colour='red'), 'unknown: colour'),
        (dict(stages=[]), 'four lists of rows'),
        (dict(stages=[[]] * 4), 'four lists of rows'),
        (dict(stages=[[['Conv', 3, 1, 8]]] * 4), 'C2 must have one row of stride 2'),
        (dict(stages=[[['Conv', 2, 2, 8]]] * 4), 'kernel size that is not odd'),
        (dict(stages=[[['Conv', 3, 2, 0]]] * 4), 'below 1'),
        (dict(stages=[[['UIB', 0, 0, 2, 4, 8]]] * 4), 'no depthwise convolution'),
        (dict(stages=[[['Conv', 3, 2, 8], ['MQA', 4, 32, 1, 16]]] * 4), 'as many output as input channels, 8'),
        (dict(stages=[[[['Conv'], 3, 2, 8]]] * 4), 'must be one of'),
        (dict(stem='x'), 'arch.stem must be a positive integer'),
        (dict(act='Foo'), 'arch.act must be'),
        (dict(width='1'), 'arch.width must be'),
        (dict(antialias='foo'), 'arch.antialias must be'),
        (dict(attention='foo'), 'arch.attention must be'),
        (dict(stages=[[['UIB', 3, 3, 1, 4]]] * 4), r"must be one of .*\[UIB, start_dw, .*got \['UIB', 3, 3, 1, 4\]"),
        (dict(stages=[[['Block', 3]]] * 4), "got \\['Block', 3\\]"),
        (dict(stages=[[['Conv', 3, 2, 'x']]] * 4), 'with integers'),
    ],
)
def test_a_wrong_table_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        MobileNetV4({**arch_to_dict(CONV_S), **change})
    with pytest.raises(UserError, match='missing: act'):
        arch_from_dict({key: value for key, value in arch_to_dict(CONV_S).items() if key != 'act'})


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize(('name', 'count'), [('small', 6), ('medium', 1)])
def test_feature_maps_are_those_of_an_ordinary_net_with_these_weights(training, name, count):
    """Also the gradients: those of a part of a tensor are those of the net's own tensor, and others are zero."""
    space = SPACES[name]
    torch.manual_seed(0)
    largest = MobileNetV4(space.subnet(space.largest()).arch, (0, 1, 2, 3, 4)).double()
    state = {f'backbone.{name}': value for name, value in largest.state_dict(keep_vars=True).items()}
    for value in state.values():
        if value.is_floating_point():
            value.data.uniform_(0.1, 1).mul_(0.2)
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    for genes in [space.smallest(), space.largest(), *random_genes(space, count)]:
        subnet = space.subnet(genes)
        ordinary = MobileNetV4(subnet.arch, (0, 1, 2, 3, 4)).double().train(training)
        parts = subnet_state(state, {f'backbone.{k}': v.shape for k, v in ordinary.state_dict().items()}, subnet.rows)
        parts = {name.removeprefix('backbone.'): value for name, value in parts.items()}
        ordinary.load_state_dict({name: value.detach().clone() for name, value in parts.items()})
        structure = MobileNetV4(subnet.arch, (0, 1, 2, 3, 4)).double().train(training)
        shared = {name: value if value.requires_grad else value.clone() for name, value in parts.items()}
        ours, theirs = functional_call(structure, shared, images), ordinary(images)
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a, b)
        largest.zero_grad()
        sum(x.square().mean() for x in ours).backward()
        sum(x.square().mean() for x in theirs).backward()
        for key, parameter in ordinary.named_parameters():
            gradient = subnet_state(
                {
                    whole: value.grad if value.grad is not None else torch.zeros_like(value)
                    for whole, value in state.items()
                },
                {f'backbone.{key}': parameter.shape},
                subnet.rows,
            )
            assert torch.equal(gradient[f'backbone.{key}'], parameter.grad), key
        total = sum(float(p.grad.abs().sum()) for p in largest.parameters() if p.grad is not None)
        assert total == pytest.approx(sum(float(p.grad.abs().sum()) for p in ordinary.parameters()), rel=1e-9)


def test_a_smaller_kernel_is_the_centre_and_fewer_channels_are_the_first():
    weights = torch.arange(2 * 3 * 5 * 5.0).reshape(2, 3, 5, 5)
    name = 'backbone.blocks.2.1.dw_mid.conv.weight'
    rows = ((0, 1), (0, 1), (0, 3), (0,))
    source = {'backbone.blocks.2.3.dw_mid.conv.weight': weights}
    (part,) = subnet_state(source, {name: (1, 2, 3, 3)}, rows).values()
    assert torch.equal(part, weights[:1, :2, 1:4, 1:4])
    with pytest.raises(ValueError, match=r'needs shape \(3, 3, 5, 5\), and the supernet has shape \(2, 3, 5, 5\)'):
        subnet_state(source, {name: (3, 3, 5, 5)}, rows)
    with pytest.raises(ValueError, match=r'nothing as backbone\.blocks\.2\.0'):
        subnet_state(source, {name.replace('2.1', '2.0'): (1, 2, 3, 3)}, rows)


def test_published_nets_and_narrower_ones():
    for name, arch in (('small', CONV_S), ('medium', CONV_M)):
        nets = published_nets(name)
        space = SPACES[name]
        whole, *narrower = (space.subnet(genes).arch for genes in list(nets.values())[:3])
        assert whole.stages == arch.stages
        for net, multiple in zip(narrower, (0.875, 0.75), strict=True):
            for stage, own in zip(net.stages, arch.stages, strict=True):
                assert [row._replace(out=0) for row in stage] == [row._replace(out=0) for row in own]
                pairs = [(row.out, other.out) for row, other in zip(stage, own, strict=True)]
                assert all(0.66 * other <= out <= max(multiple, 0.8) * other for out, other in pairs)
    assert [stage[-1].out for stage in SMALL.subnet(published_nets('small')['mnv4_conv_s x 0.75']).arch.stages] == [
        24, 48, 64, 96,
    ]  # fmt: skip
