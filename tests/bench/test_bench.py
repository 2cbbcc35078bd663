"""The benchmark itself: arithmetic, files, and that each part runs. Speed is not tested."""

import importlib.util
import json
import sys

import cv2
import pytest
import torch
from torchvision.models.detection import ssdlite320_mobilenet_v3_large

from mnv4_mm.bench import measure as measuring
from mnv4_mm.bench import parts
from mnv4_mm.bench import run as running
from mnv4_mm.bench.augmentation import MMDET, MMSEG, augmentation_pairs
from mnv4_mm.bench.detectors import TorchvisionSSDLite, Yolo11n
from mnv4_mm.bench.exported import class_map_pairs, predictor_pairs
from mnv4_mm.bench.labelling import labelling
from mnv4_mm.bench.measure import Figure, Pair, Ratio
from mnv4_mm.bench.step import Step
from mnv4_mm.errors import UserError
from mnv4_mm.images import read_image
from mnv4_mm.runtime.meta import Input

_BARE_PACKAGE = "import sys, types; p = types.ModuleType('mnv4_mm'); p.__path__ = [{!r}]; sys.modules['mnv4_mm'] = p\n"


@pytest.fixture
def clock(monkeypatch):
    """A clock that only advances when it is told to."""
    now = [0.0]
    monkeypatch.setattr(measuring.time, 'perf_counter', lambda: now[0])

    def takes(seconds):
        def call():
            now[0] += seconds

        return call

    return takes


def test_speedup_is_the_time_of_the_baseline_over_ours(clock):
    ratio = measuring.measure(Pair('x', clock(2.0), clock(6.0), target=5, rounds=4))
    assert ratio == Ratio('x', 2000, 6000, 3, 5)


def test_sides_are_timed_in_turn_and_warm_up_rounds_do_not_count():
    order = []
    measuring.measure(Pair('x', lambda: order.append('a'), lambda: order.append('b'), rounds=2, warm_up=1))
    assert ''.join(order) in ('abbaab', 'baabba')


def test_time_memory_and_output_of_a_process():
    small = measuring.run_python(['-c', 'print("here")'])
    large = measuring.run_python(['-c', 'x = b"x" * (300 * 2**20); import time; time.sleep(1)'])
    assert small.output == 'here\n'
    assert large.seconds > 1
    assert large.peak_mib - small.peak_mib == pytest.approx(300, rel=0.2)
    with pytest.raises(RuntimeError, match='ZeroDivisionError'):
        measuring.run_python(['-c', '1 / 0'])


def use_parts(monkeypatch, **measure):
    monkeypatch.setattr(running, 'MEASURE', measure)
    monkeypatch.setattr(parts, 'PARTS', dict.fromkeys(measure, ()))


def test_each_part_can_be_measured():
    assert list(parts.PARTS) == list(running.MEASURE)


def test_files_and_table(monkeypatch, tmp_path):
    ratio, figure = Ratio('one', 2.0, 6.0, 3.0, 5.0), Figure('two', 0.5, 's', 1)
    use_parts(monkeypatch, a=lambda: iter([ratio]), b=lambda: iter([figure]))
    lines = []
    running.bench(tmp_path / 'x/bench.json', log=lines.append)
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
    with pytest.raises(UserError, match='is a folder'):
        running.bench(tmp_path)


def test_results_are_printed_as_they_are_measured(monkeypatch, tmp_path):
    def part():
        yield Figure('first', 1.0, 's')
        raise RuntimeError('the second one fails')

    use_parts(monkeypatch, a=part)
    lines = []
    with pytest.raises(RuntimeError, match='the second one fails'):
        running.bench(tmp_path / 'bench.json', log=lines.append)
    assert lines[1:] == ['| first | 1.00 s | | |  |']


def test_a_missing_module_is_an_error_before_anything_is_measured(monkeypatch, tmp_path):
    def fail():
        raise AssertionError('measured')

    use_parts(monkeypatch, a=fail, b=fail)
    monkeypatch.setitem(parts.PARTS, 'b', ('ultralytics', 'json'))
    find = importlib.util.find_spec
    monkeypatch.setattr(parts.importlib.util, 'find_spec', lambda name: None if name == 'ultralytics' else find(name))
    with pytest.raises(UserError, match=r"part 'b' needs ultralytics, .*requirements/bench\.txt; .*--only a$"):
        running.bench(tmp_path / 'x/bench.json')
    with pytest.raises(UserError, match=r'requirements/bench\.txt$'):
        running.bench(tmp_path / 'x/bench.json', only=['b'])
    assert not (tmp_path / 'x').exists()


def test_checks_import_nothing_heavy(repository):
    code = (
        'import sys; from pathlib import Path\n'
        "for name in ('torch', 'mmengine', 'mmcv', 'mmdet', 'mmseg'): sys.modules[name] = None\n"
        'from mnv4_mm.bench.parts import check_bench\n'
        "print(check_bench(Path('x.json'), ['step', 'training']))\n"
    )
    # A package of the same name whose __init__ registers nothing: it is the modules themselves that are tested.
    process = measuring.run_python(['-c', _BARE_PACKAGE.format(str(repository / 'mnv4_mm')) + code])
    assert process.output == "['step', 'training']\n"


def test_help_names_every_part(run_tool):
    shown = ' '.join(run_tool('bench.py', '--help').stdout.split())
    assert ', '.join(parts.PARTS) in shown


def test_every_side_of_the_augmentation_runs():
    for pair in augmentation_pairs():
        pair.ours()
        pair.baseline()
    assert MMDET[2]['type'] == 'Expand'
    assert MMSEG[3]['type'] == 'RandomCrop'


def test_a_step_has_all_its_parts():
    parts = Step(2, 64, channels_last=True, bf16=True, fused=True)()
    assert list(parts) == ['normalise and stack', 'forward', 'targets and loss', 'backward', 'optimiser']
    assert all(seconds > 0 for seconds in parts.values())


@pytest.mark.long
def test_every_side_of_exported_files_runs():
    for pair in (*predictor_pairs(), *class_map_pairs(classes=5, side=16, factor=4)):
        pair.ours()
        pair.baseline()


def test_torchvision_detector_has_the_detections_of_torchvision(repository):
    """Each detection of torchvision is among our boxes and scores, which are those before NMS."""
    to = Input((320, 320), 'NHWC', 'uint8', 'RGB', False, (127.5,) * 3, (127.5,) * 3, 32)
    torch.manual_seed(0)
    net = TorchvisionSSDLite(to)
    torch.manual_seed(0)
    whole = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None).eval()
    path = sorted((repository / 'data/mini/coco/val2017').glob('*.jpg'))[0]
    image = cv2.resize(read_image(path), (320, 320))[..., ::-1].copy()
    with torch.no_grad():
        boxes, scores = (value[0] for value in net(torch.from_numpy(image)[None]))
        expected = whole([torch.from_numpy(image).permute(2, 0, 1) / 255])[0]
    for box, score, label in zip(expected['boxes'], expected['scores'], expected['labels'], strict=True):
        near = (boxes.clamp(0, 320) - box).abs().amax(1) < 1e-2
        assert (scores[near, label - 1] - score).abs().min() < 1e-5
    assert len(expected['boxes']) > 10


def test_an_ultralytics_that_cannot_be_imported_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, 'ultralytics.nn.tasks', None)
    to = Input((320, 320), 'NHWC', 'uint8', 'RGB', False, (0.0,) * 3, (1.0,) * 3, 32)
    with pytest.raises(UserError, match=r'pip install --no-deps -r requirements/bench\.txt'):
        Yolo11n(to)


@pytest.mark.long
def test_every_side_of_labelling_runs():
    ratio = next(labelling(count=8, rounds=1))
    assert ratio.ours_ms > 0
    assert ratio.baseline_ms > 0
