"""What stops a run, what only leaves a line, and what never happens without one."""

import errno
import json
import math
import multiprocessing
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from end_to_end import arguments, draw_few, resized
from mmengine.evaluator import BaseMetric
from mmengine.logging import MessageHub, MMLogger
from torch import nn

from mnv4_mm.engine import loaders
from mnv4_mm.engine.checkpoints import SafeCheckpointHook
from mnv4_mm.engine.guards import LossGuardHook, SkippedImagesHook, non_finite
from mnv4_mm.engine.measured import MeasuredEvaluator, is_measured
from mnv4_mm.errors import UserError
from mnv4_mm.weights.checkpoint import read_checkpoint, read_newest, write_checkpoint, written_atomically
from mnv4_mm.weights.work_dir import list_checkpoints

BACKGROUNDS = Path(__file__).parents[2] / 'data/mini/coco/train2017'
DETECTOR, SEGMENTER = 'mnv4_ssdlite_coco-mini', 'mnv4_lraspp_ade20k-mini'
NO_WORKERS = {f'{split}_dataloader.num_workers': 0 for split in ('train', 'val', 'test')}
SMALL = {
    **NO_WORKERS,  # the configs keep persistent_workers
    **resized(160),
    'report_on_training_images': False,
    'train_dataloader.dataset.times': 1,
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Eight images with drawn shapes, the same for training and validation; one's own copy, to be spoiled."""
    return draw_few(tmp_path / 'shapes', BACKGROUNDS, count=8, size=160)


@pytest.fixture
def train(call_tool: Any, data: Path, tmp_path: Path) -> Callable[..., Any]:
    """Train on ``data`` into ``tmp_path / 'w'``."""

    def run(config: str = DETECTOR, *more: object, **options: object) -> Any:
        length = ['--epochs', 1] if config == DETECTOR else ['--iters', 2]
        chosen = {**(SMALL if config == DETECTOR else NO_WORKERS), 'report_on_training_images': False}
        chosen |= {key.replace('__', '.'): value for key, value in options.items()}
        return call_tool(
            'train.py', config, '--data', data, '--work-dir', tmp_path / 'w', '--weights', 'none', *length, *more,
            *arguments(chosen),
        )  # fmt: skip

    return run


def refused(run: Any, *parts: str) -> None:
    """Check that a command ended with one line of advice."""
    assert run.returncode == 2, run.stdout + run.stderr
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith('error: ')
    assert 'Traceback' not in run.stderr
    for part in parts:
        assert part in last


@pytest.mark.parametrize(
    ('batch', 'code', 'message'),
    [
        (7, 0, 'the last of 8 images would be a batch of one'),
        (20, 0, 'batch_size=20 is larger than the 8 images of an epoch: a step has 8'),
        (1, 2, 'use batches of at least two images in each process'),
    ],
    ids=['last-batch-of-one', 'batch-larger-than-data', 'batch-of-one'],
)
def test_batches_fit_the_data(train, tmp_path, batch, code, message):
    run = train(train_dataloader__batch_size=batch)
    if code:
        refused(run, message)
        assert not list((tmp_path / 'w').glob('*.pth'))
        return
    assert run.returncode == 0, run.stderr
    assert message in run.stdout
    assert 'with num_workers=0, persistent_workers has no effect' in run.stdout  # no-workers
    assert torch.load(tmp_path / 'w/epoch_1.pth', weights_only=False)['meta']['iter'] == 1


def test_there_are_no_more_workers_than_processors(monkeypatch):
    monkeypatch.setattr(loaders, 'cores', lambda: 3)
    for given, used in ((8, 3), (3, 3), (0, 0)):
        loader = dict(num_workers=given, dataset=[0])
        assert loaders.prepare_loader(loader, 0)['num_workers'] == used
        assert loader['num_workers'] == given


@pytest.fixture
def start_method() -> Iterator[None]:
    """Forget how processes are started, and restore it after the test: mmengine sets it for this whole process."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(None, force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.long  # the workers of a data loader alone: tests/data/test_coco_dataset.py
@pytest.mark.parametrize('config', [DETECTOR, SEGMENTER])
def test_workers_may_be_spawned(config, train, start_method, tmp_path):
    """As on macOS: data sets, transforms and samplers can be pickled, and are registered in a new interpreter."""
    run = train(
        config,
        train_dataloader__num_workers=1,
        train_dataloader__batch_size=4,
        val_dataloader__num_workers=1,
        env_cfg__mp_cfg__mp_start_method='spawn',
    )
    assert run.returncode == 0, run.stderr
    assert multiprocessing.get_start_method() == 'spawn'
    name, metric = ('epoch_1.pth', 'bbox_mAP') if config == DETECTOR else ('iter_2.pth', 'mIoU')
    assert torch.load(tmp_path / 'w' / name, weights_only=False)['meta']['iter'] == 2
    assert f'shapes/{metric}' in run.stdout


def test_a_loss_that_is_not_finite_stops_the_run(train, tmp_path):
    """loss-nan: nothing is offered as a result."""
    run = train(optim_wrapper__optimizer__lr=1e12, optim_wrapper__clip_grad=None, train_dataloader__batch_size=2)
    refused(run, 'is stopped and this state is not saved', '--auto-scale-lr', 'last_good.pth')
    work_dir = tmp_path / 'w'
    assert [path.name for path in work_dir.glob('*.pth')] == ['last_good.pth']
    assert not (work_dir / 'curves.png').exists()
    record = json.loads((work_dir / 'non_finite.json').read_text())
    assert 1 < record['step'] <= 4
    assert len(record['images']) == 2
    assert all(Path(image['path']).is_file() and image['id'] is not None for image in record['images'])
    good = read_checkpoint(work_dir / 'last_good.pth')
    assert all(value.isfinite().all() for value in good.content['state_dict'].values())
    assert len(good.meta['dataset_meta']['classes']) == 6


def test_weights_that_are_not_finite_are_found():
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    assert non_finite(net) is None
    net[1].running_var.fill_(math.inf)
    assert non_finite(net) == '1.running_var'
    net[0].weight.data.fill_(math.nan)
    assert non_finite(net) == '0.weight'


def test_every_level_of_a_loss_is_checked(tmp_path):
    """Heads return a list with the loss of each level; mmengine sums them only later."""
    guard = LossGuardHook()
    stopped: list[tuple] = []
    guard._runner, guard._stop = object(), lambda runner, problem, losses: stopped.append((problem, losses))
    net = nn.Linear(1, 1)
    good, bad = torch.tensor(1.0), torch.tensor(math.nan)
    guard._check_losses(net, (), dict(loss_cls=[good, good], acc=bad))
    assert not stopped
    for level in range(2):
        levels = [bad if number == level else good for number in range(2)]
        guard._check_losses(net, (), dict(loss_bbox=good, loss_cls=levels))
        problem, losses = stopped.pop()
        assert problem == f'loss_cls[{level}] is nan'
        assert list(losses) == ['loss_bbox', 'loss_cls[0]', 'loss_cls[1]']


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


@pytest.mark.parametrize(('workers', 'allowed'), [(0, 0.01), (1, 0.5)])
def test_an_image_that_becomes_unreadable_is_skipped(data, tmp_path, workers, allowed, monkeypatch):
    """train-truncated-jpeg, after the check: in a segmenter, with and without workers."""
    from mnv4_mm.apis.train import train as train_config
    from mnv4_mm.engine.runner import SafeRunner

    victim = sorted((data / 'images/training').iterdir())[3]
    before = SafeRunner.train

    def spoil(self: Any) -> Any:  # the check is over
        cut(victim)
        return before(self)

    monkeypatch.setattr(SafeRunner, 'train', spoil)
    options: dict[str, Any] = {
        **NO_WORKERS,
        'train_dataloader.num_workers': workers,
        'report_on_training_images': False,
        'train_dataloader.dataset.pipeline': [
            dict(
                type='SegAugmentation', scale=(640, 160), ratio_range=(0.5, 2.0), crop_size=(160, 160),
                cat_max_ratio=0.75, flip_prob=0.5,
            ),
            dict(type='PackSegInputs'),
        ],
        'default_hooks.skipped_images': dict(type='SkippedImagesHook', allowed=allowed),
    }  # fmt: skip
    work_dir = tmp_path / 'w'

    def run() -> Path:
        return train_config(
            SEGMENTER, data=str(data), work_dir=str(work_dir), iters=4, weights='none', cfg_options=options
        )

    if allowed == 0.01:
        with pytest.raises(UserError, match=r'1 of 8 training images cannot be read any more, more than 1%') as error:
            run()
        assert victim.name in str(error.value)
        assert '--allow-dropped' in str(error.value)
        return
    run()
    log = next(work_dir.glob('*/*.log')).read_text()
    assert '1 of 8 training images could not be read and were skipped:' in log
    assert victim.name in log
    known = torch.load(work_dir / 'iter_4.pth', weights_only=False)['message_hub']['runtime_info']
    assert [victim.name in problem for problem in known[SkippedImagesHook.KEY]] == [True]


class Fixed(BaseMetric):
    """Metric with given values."""

    def __init__(self, values: dict[str, float]) -> None:
        super().__init__(prefix='x')
        self.values = values

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append(0)

    def compute_metrics(self, results: list) -> dict[str, float]:
        return self.values


@pytest.mark.parametrize(
    ('values', 'left', 'is_reported'),
    [
        (dict(bbox_mAP=-1.0, bbox_mAP_50=-1.0), {}, True),
        (dict(mIoU=math.nan, aAcc=0.5), {'x/aAcc': 0.5}, True),
        (dict(bbox_mAP=0.0, bbox_mAP_s=-1.0), {'x/bbox_mAP': 0.0}, False),
    ],
)
def test_what_cannot_be_measured_is_left_out(values, left, is_reported, monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(MMLogger.get_current_instance(), 'warning', lines.append)
    evaluator = MeasuredEvaluator([Fixed(values)])
    evaluator.metrics[0].results = [0]
    assert evaluator.evaluate(1) == left
    assert len(lines) == is_reported
    assert all('not measurable' in line for line in lines)
    assert set(evaluator.unmeasured) == {f'x/{name}' for name in values} - left.keys()


def test_a_string_is_measured():
    assert is_measured('text')
    assert is_measured(-0.5)


def held_out(**options: object) -> list[str]:
    """Arguments that change the data of validation and of the test after training in a config.

    ``--data`` refuses data that cannot be measured; the paths of a config get there.
    """
    keys = {key.replace('__', '.'): value for key, value in options.items()}
    splits = ('val_dataloader.dataset', 'test_dataloader.dataset')
    return arguments({f'{split}.{key}': value for split in splits for key, value in keys.items()})[1:]


def test_validation_without_ground_truth_is_a_word(call_tool, repository, tmp_path):
    """masks-unlabelled-val: no number, and no best checkpoint, in training and in a test."""
    masks = tmp_path / 'masks'
    masks.mkdir()
    for mask in (repository / 'data/mini/ade/annotations/validation').iterdir():
        cv2.imwrite(str(masks / mask.name), np.zeros_like(cv2.imread(str(mask), cv2.IMREAD_UNCHANGED)))
    run = call_tool(
        'train.py', SEGMENTER, '--work-dir', tmp_path / 'w', '--iters', 2,
        *arguments({**NO_WORKERS, 'report_on_training_images': False}),
        *held_out(data_prefix__seg_map_path=masks, indices=4),
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert 'ade-mini/mIoU: not measurable' in run.stdout
    assert 'nan' not in run.stdout
    assert not list((tmp_path / 'w').glob('best_*'))
    tested = call_tool('test.py', tmp_path / 'w/iter_2.pth', '--work-dir', tmp_path / 't')
    assert tested.returncode == 0, tested.stderr
    assert json.loads((tmp_path / 't/metrics.json').read_text()) == {'ade-mini/mIoU': None}


def test_boxes_that_cannot_be_measured_are_a_word(call_tool, repository, tmp_path):
    """val-without-boxes."""
    whole = json.loads((repository / 'data/mini/coco/annotations/instances_val2017.json').read_text())
    file = tmp_path / 'val.json'
    file.write_text(json.dumps(dict(whole, annotations=[])))
    run = call_tool(
        'train.py', DETECTOR, '--work-dir', tmp_path / 'w', '--epochs', 1, *arguments(SMALL), *held_out(ann_file=file)
    )
    assert run.returncode == 0, run.stderr
    assert '-1.0' not in run.stdout
    assert 'best' not in run.stdout
    assert not list((tmp_path / 'w').glob('best_*'))
    assert 'mAP not measurable' in run.stdout


# ---- checkpoints ----


def small(step: int) -> dict[str, Any]:
    return dict(meta=dict(iter=step), state_dict=dict(a=torch.full((1000,), float(step))))


@pytest.mark.parametrize(
    ('damage', 'expected'),
    [
        ([], 'epoch_3.pth'),
        (['epoch_3.pth'], 'epoch_2.pth'),
        (['epoch_3.pth', 'epoch_2.pth'], 'epoch_1.pth'),
        (['last_checkpoint'], 'epoch_3.pth'),
    ],
    ids=str,
)
def test_the_newest_whole_checkpoint_is_resumed(tmp_path, damage, expected):
    for step in (1, 2, 3):
        write_checkpoint(small(step), tmp_path / f'epoch_{step}.pth')
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_3.pth'))
    write_checkpoint(small(9), tmp_path / 'best_x_epoch_9.pth')  # weights only: never resumed
    for name in damage:
        cut(tmp_path / name)
    lines: list[str] = []
    found = read_newest(tmp_path, lines.append)
    assert found is not None
    assert found.path.name == expected
    broken = [name for name in damage if name.startswith('epoch')]
    assert all(any(name in line for line in lines) for name in broken)
    assert bool(lines) == bool(broken)


def test_a_run_goes_on_where_the_kill_left_it(tmp_path):
    """Killed after epoch_3.pth was renamed and before last_checkpoint was; and a stale later epoch of another run."""
    for step in (9, 2, 3):
        write_checkpoint(small(step), tmp_path / f'epoch_{step}.pth')
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'epoch_2.pth'))
    assert [path.name for path in list_checkpoints(tmp_path)][:2] == ['epoch_3.pth', 'epoch_2.pth']
    moved = tmp_path.rename(tmp_path.with_name(f'{tmp_path.name}_moved'))
    assert list_checkpoints(moved)[0] == moved / 'epoch_3.pth'


@pytest.mark.parametrize('several', [False, True])
def test_a_copied_run_leaves_the_original_alone(tmp_path, several):
    original, copied = tmp_path / 'w', tmp_path / 'copied'
    keys = ['ap', 'iou'] if several else ['ap']
    best = {f'best_ckpt_{key}' if several else 'best_ckpt': original / f'best_{key}_epoch_1.pth' for key in keys}
    for path in (original / 'epoch_1.pth', original / 'epoch_2.pth', *best.values()):
        write_checkpoint(small(1), path)
    (original / 'last_checkpoint').write_text(str(original / 'epoch_2.pth'))
    shutil.copytree(original, copied)
    before = sorted(original.iterdir())
    assert [path.parent for path in list_checkpoints(copied)] == [copied, copied]

    def save(folder: str, filename: str, *args: object, **kwargs: object) -> None:
        write_checkpoint(small(3), Path(folder) / filename)

    hub = MessageHub('copied')
    for key, value in {**best, 'last_ckpt': original / 'epoch_2.pth'}.items():
        hub.update_info(key, str(value))
    runner: Any = SimpleNamespace(
        work_dir=str(copied), logger=MMLogger('copied'), message_hub=hub, iter=4, epoch=3, save_checkpoint=save,
        train_loop=None, val_loop=None, _resume=True, cfg={},
    )  # fmt: skip
    hook = SafeCheckpointHook(save_best=keys, rule='greater', max_keep_ckpts=1)
    hook.before_train(runner)
    assert hook.last_ckpt == str(copied / 'epoch_2.pth')
    hook.after_val_epoch(runner, dict.fromkeys(keys, 0.9))
    assert sorted(original.iterdir()) == before
    assert sorted(copied.glob('best_*')) == [copied / f'best_{key}_epoch_3.pth' for key in keys]
    cut(copied / 'epoch_3.pth')
    lines: list[str] = []
    found = read_newest(copied, lines.append)
    assert found is not None
    assert found.path == copied / 'epoch_2.pth'
    assert str(copied / 'epoch_3.pth') in lines[0]


def test_no_checkpoint_is_whole(tmp_path):
    assert read_newest(tmp_path) is None
    (tmp_path / 'iter_5.pth').write_bytes(b'PK')
    with pytest.raises(UserError, match=r'no checkpoint in .* can be read: .*iter_5\.pth'):
        read_newest(tmp_path)


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path):
    """A limit on the size of files stands in for a full disk; tests/long/test_kills.py fills a real one."""
    path = tmp_path / 'epoch_1.pth'
    write_checkpoint(small(1), path)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with pytest.raises(UserError, match=r'cannot be written: File too large; the last complete checkpoint is .*1'):
            write_checkpoint(small(2), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert [file.name for file in tmp_path.iterdir()] == ['epoch_1.pth']
    assert read_checkpoint(path).meta['iter'] == 1


def test_a_file_is_there_completely_or_not_at_all(tmp_path):
    path = tmp_path / 'iter_4.pth'

    def write(error: BaseException) -> None:
        with written_atomically(path) as part:
            part.write_bytes(b'half')
            raise error

    with pytest.raises(KeyboardInterrupt):
        write(KeyboardInterrupt())
    assert not path.exists()
    with pytest.raises(UserError, match='No space left on device; no checkpoint has been written yet'):
        write(OSError(errno.ENOSPC, 'No space left on device'))
    assert not path.exists()
