"""Blocks in isolation: what is built, its counts, and the page."""

import pytest
import torch

from mnv4_mm.cli import main
from mnv4_mm.transfer import blocks, exported, nets, pages
from mnv4_mm.transfer.blocks_page import ALL_KEYS, page


def built(part):
    return list(blocks.blocks(part))


@pytest.mark.parametrize('part', nets.BLOCK_PARTS)
def test_blocks_keep_the_shape_they_are_named_for(part):
    for block in built(part):
        x = torch.randn(1, block.channels, block.side, block.side)
        with torch.no_grad():
            y = block.module.eval()(x)
        y = y[0] if isinstance(y, tuple) else y
        assert y.shape == (x.shape if part != 'nets' else (1, 256, block.side // 32, block.side // 32)), block.name


def test_mqa_saves_the_key_and_value_heads():
    parameters = {
        block.name: sum(p.numel() for p in block.module.parameters())
        for block in built('attention')
        if (block.channels, block.side) == (160, 16)
    }
    width = blocks.HEADS * blocks.KEY_DIM
    assert parameters['MHSA'] == 4 * 160 * width + 3 * 160  # with norm and layer scale
    assert parameters['MHSA'] - parameters['MQA'] == 2 * 160 * (width - blocks.KEY_DIM)
    assert parameters['MQA, kv stride 2'] - parameters['MQA'] == 2 * 160 * (9 + 2)


def test_nets_differ_by_their_attention_alone():
    parameters = {block.name: sum(p.numel() for p in block.module.parameters()) for block in built('nets')}
    assert parameters['no attention'] < parameters['MQA, kv stride 1'] < parameters['MQA, as published']
    assert parameters['MQA, as published'] / 1e6 == pytest.approx(8.315, abs=1e-3)
    assert parameters['MHSA'] > parameters['MQA, as published']


def record(part, name, latency, spread=0.0, **counts):
    return dict(
        part=part, block=name, channels=3, side=256, parameters=counts.get('parameters', 1), macs=counts.get('macs', 1),
        bytes=1, latency_ms={'onnx': latency}, round_ms={'onnx': [latency - spread, latency, latency + spread]},
        failed={'ncnn': 'no ncnn'}, date='2026-01-01',
        machine=dict(cpu='c', instructions=[], cores=1, load=[0.0, 0.0], python='3', versions={}, commit='x'),
    )  # fmt: skip


def test_added_latency_is_relative_to_the_net_without_attention():
    records = [
        record('nets', 'no attention', 10.0, parameters=100, macs=10),
        record('nets', 'MQA, as published', 13.0, 0.5, parameters=130, macs=16),
        record('nets', 'MHSA', 15.0, 0.5, parameters=150, macs=18),
    ]
    text = page(records, 'blocks.png')
    assert '| MQA, as published against MHSA | -40 % | -25 % | -40 % | - |' in text
    assert 'no ncnn' in text
    noisy = [*records[:2], record('nets', 'MHSA', 15.0, 2.0, parameters=150, macs=18)]
    assert '| MQA, as published against MHSA | -40 % | -25 % | not measurable | - |' in page(noisy, 'blocks.png')
    # Attention that adds nothing: a ratio to it would be noise.
    nothing = [records[0], record('nets', 'MQA, as published', 13.0, 0.1), record('nets', 'MHSA', 10.2, 0.3)]
    assert 'not measurable' in page(nothing, 'blocks.png')


def test_attention_blocks_are_compared():
    records = [
        record('attention', 'MQA', 13.0, 0.5, parameters=75, macs=80),
        record('attention', 'MHSA', 20.0, 0.5, parameters=100, macs=100),
    ]
    assert '| MQA against MHSA | 256x256 | -25 % | -20 % | -35 % | - | - | - | - |' in page(records, 'blocks.png')
    noisy = [records[0], record('attention', 'MHSA', 20.0, 7.0, parameters=100, macs=100)]
    assert '| MQA against MHSA | 256x256 | -25 % | -20 % | not measurable | -' in page(noisy, 'blocks.png')


def test_a_block_that_fails_in_onnx_runtime_leaves_the_others_alone(monkeypatch):
    monkeypatch.setattr(blocks, 'UIB_WIDTHS', (16,))
    monkeypatch.setattr(blocks, 'UIB_SIDES', (8,))
    monkeypatch.setattr(blocks, 'UIB_FORMS', {'IB': (0, 3), 'FFN': (0, 0)})
    monkeypatch.setitem(nets.BLOCK_RUNTIMES, 'uib', ('onnx',))
    check = exported.check_output

    def fail(graph, path, tolerance):
        if path.name.startswith('0.'):
            raise RuntimeError('planted')
        return check(graph, path, tolerance)

    monkeypatch.setattr(exported, 'check_output', fail)
    found = blocks.measure_blocks(['uib'], rounds=1, seconds=0.001, log=lambda line: None)
    assert [one['block'] for one in found] == ['FFN', 'FusedIB']
    assert all(one['latency_ms'] and not one['failed'] for one in found)


def test_command_writes_the_page_and_check_notices_changes(tmp_path):
    files = ['--records', str(tmp_path / 'r.jsonl'), '--page', str(tmp_path / 'p.md')]
    records = [record('uib', name, 1.0) for name in ('ExtraDW', 'IB')]
    pages.write_records(tmp_path / 'r.jsonl', records)
    assert main(['blocks', *files]) == 0
    assert main(['blocks', *files, '--check']) == 0
    pages.write_records(tmp_path / 'r.jsonl', records[:1])
    assert main(['blocks', *files, '--check']) == 1


def test_committed_records_are_complete(repository):
    records = pages.read_records(repository / 'docs/results/blocks.jsonl', ALL_KEYS)
    for part in nets.BLOCK_PARTS:
        expected = {(block.name, block.channels, block.side) for block in built(part)}
        found = [one for one in records if one['part'] == part]
        assert {(one['block'], one['channels'], one['side']) for one in found} == expected
        for one in found:
            assert one['latency_ms'].keys() | one['failed'].keys() == set(nets.BLOCK_RUNTIMES[part])
            assert all(value > 0 for value in one['latency_ms'].values())


def test_a_block_is_measured_in_a_runtime(monkeypatch):
    monkeypatch.setattr(blocks, 'UIB_WIDTHS', (16,))
    monkeypatch.setattr(blocks, 'UIB_SIDES', (8,))
    monkeypatch.setattr(blocks, 'UIB_FORMS', {'IB': (0, 3)})
    monkeypatch.setitem(nets.BLOCK_RUNTIMES, 'uib', ('onnx',))
    found = blocks.measure_blocks(['uib'], rounds=1, seconds=0.001, log=lambda line: None)
    assert [one['block'] for one in found] == ['IB', 'FusedIB']
    # 64 positions: expansion, depthwise convolution, projection.
    assert found[0]['macs'] == 64 * (16 * 64 + 9 * 64 + 64 * 16)
    assert found[1]['macs'] == 64 * (9 * 16 * 64 + 64 * 16)
    assert set(ALL_KEYS) <= found[0].keys()
    assert found[0]['latency_ms']['onnx'] > 0
