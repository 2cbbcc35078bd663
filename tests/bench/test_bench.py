"""The benchmark itself: its arithmetic, its files, and that each part does its work. Not how fast anything is."""

import json
import sys

import cv2
import pytest
import torch
from torchvision.models.detection import ssdlite320_mobilenet_v3_large

from mnv4_mm.bench import measure as measuring
from mnv4_mm.bench import run as running
from mnv4_mm.bench.augmentation import MMDET, MMSEG, augmentation_pairs
from mnv4_mm.bench.detectors import TorchvisionSSDLite, Yolo11n
from mnv4_mm.bench.exported import class_map_pairs, predictor_pairs
from mnv4_mm.bench.measure import Figure, Pair, Ratio
from mnv4_mm.bench.step import Step
from mnv4_mm.errors import UserError
from mnv4_mm.images import read_image
from mnv4_mm.runtime.meta import Input


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved."""
    now = [0.0]
    monkeypatch.setattr(measuring.time, 'perf_counter', lambda: now[0])

    def takes(seconds):
        def call():
            now[0] += seconds

        return call

    return takes


def test_times_as_fast_is_theirs_over_ours(clock):
    found = measuring.measure(Pair('x', clock(2.0), clock(6.0), wanted=5, rounds=4))
    assert found == Ratio('x', 2000, 6000, 3, 5)


def test_sides_are_measured_in_turn_and_the_first_rounds_do_not_count():
    order = []
    measuring.measure(Pair('x', lambda: order.append('a'), lambda: order.append('b'), rounds=2, warm_up=1))
    assert ''.join(order) in ('abbaab', 'baabba')


def test_a_process_tells_its_time_memory_and_output():
    small = measuring.run(['-c', 'print("here")'])
    large = measuring.run(['-c', 'x = b"x" * (300 * 2**20); import time; time.sleep(1)'])
    assert small.output == 'here\n'
    assert large.seconds > 1
    assert large.peak_mib - small.peak_mib == pytest.approx(300, rel=0.2)
    with pytest.raises(RuntimeError, match='ZeroDivisionError'):
        measuring.run(['-c', '1 / 0'])


def test_files_and_table(monkeypatch, tmp_path):
    ratio, figure = Ratio('one', 2.0, 6.0, 3.0, 5.0), Figure('two', 0.5, 's', 1)
    monkeypatch.setattr(running, 'PARTS', dict(a=lambda: ([ratio], []), b=lambda: ([], [figure])))
    lines = []
    running.bench(tmp_path / 'x/bench.json', say=lines.append)
    assert lines[1:] == ['| one | 2.0 ms | 6.0 ms | 3.00 | 5 |', '| two | 0.50 s | | | below 1 s |']
    content = json.loads((tmp_path / 'x/bench.json').read_text())
    assert content['ratios'] == [ratio._asdict()]
    assert content['figures'] == [figure._asdict()]
    assert (tmp_path / 'x/bench.png').stat().st_size > 5000
    with pytest.raises(UserError, match="no part 'c' to measure; there are a, b"):
        running.bench(tmp_path / 'y.json', only=['c'])
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match='cannot be written'):
        running.bench(tmp_path / 'file/y.json')


def test_help_names_every_part(run_tool):
    shown = ' '.join(run_tool('bench.py', '--help').stdout.split())
    assert ', '.join(running.PARTS) in shown


def test_every_side_of_the_augmentation_runs():
    for pair in augmentation_pairs():
        pair.ours()
        pair.theirs()
    assert MMDET[2]['type'] == 'Expand'
    assert MMSEG[3]['type'] == 'RandomCrop'


def test_a_step_has_all_its_parts():
    parts = Step(2, 64, channels_last=True, bf16=True, fused=True)()
    assert list(parts) == ['normalise and stack', 'forward', 'targets and loss', 'backward', 'optimiser']
    assert all(seconds > 0 for seconds in parts.values())


def test_every_side_of_exported_files_runs():
    for pair in (*predictor_pairs(), *class_map_pairs(classes=5, side=16, factor=4)):
        pair.ours()
        pair.theirs()


def test_torchvisions_detector_is_torchvisions(repository):
    """Boxes and scores before NMS: what is left of them is what torchvision finds."""
    to = Input((320, 320), 'NHWC', 'uint8', 'RGB', False, (127.5,) * 3, (127.5,) * 3, 32)
    torch.manual_seed(0)
    net = TorchvisionSSDLite(to)
    torch.manual_seed(0)
    whole = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None).eval()
    path = sorted((repository / 'data/mini/coco/val2017').glob('*.jpg'))[0]
    picture = cv2.resize(read_image(path), (320, 320))[..., ::-1].copy()
    with torch.no_grad():
        boxes, scores = (value[0] for value in net(torch.from_numpy(picture)[None]))
        expected = whole([torch.from_numpy(picture).permute(2, 0, 1) / 255])[0]
    for box, score, label in zip(expected['boxes'], expected['scores'], expected['labels'], strict=True):
        near = (boxes.clamp(0, 320) - box).abs().amax(1) < 1e-2
        assert (scores[near, label - 1] - score).abs().min() < 1e-5
    assert len(expected['boxes']) > 10


def test_what_is_measured_beside_ours_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, 'ultralytics.nn.tasks', None)
    to = Input((320, 320), 'NHWC', 'uint8', 'RGB', False, (0.0,) * 3, (1.0,) * 3, 32)
    with pytest.raises(UserError, match=r'pip install --no-deps -r requirements/bench\.txt'):
        Yolo11n(to)
