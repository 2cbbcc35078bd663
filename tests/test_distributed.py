"""Two processes on a CPU, started as by a user, compute the same as one process with twice the batch size."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mnv4_mm.apis.launch import join_processes
from mnv4_mm.errors import UserError

STEPS = 20

# Only the initial weights and the order are random, and only the backbone normalises over a batch.
COMMON = """
randomness = dict(seed=0)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(max_keep_ckpts=-1))
report_on_training_pictures = False
val_dataloader = dict(batch_size=1)
test_dataloader = val_dataloader
"""
SEGMENTER = """
_base_ = ['{repository}/configs/mnv4_lraspp_ade20k-mini.py']
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='Resize', scale=(160, 160), keep_ratio=False),
    dict(type='PackSegInputs'),
]
norm_cfg = dict(_delete_=True, type='GN', num_groups=8)
model = dict(decode_head=dict(dropout_ratio=0.0, norm_cfg=norm_cfg))
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
"""
DETECTOR = """
_base_ = ['{repository}/configs/mnv4_rtmdet_coco-mini.py']
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(160, 160), keep_ratio=False),
    dict(type='PackDetInputs'),
]
norm_cfg = dict(_delete_=True, type='GN', num_groups=8)
model = dict(neck=dict(norm_cfg=norm_cfg), bbox_head=dict(norm_cfg=norm_cfg))
train_dataloader = dict(dataset=dict(times=1, dataset=dict(pipeline=train_pipeline)))
"""
# The comparison keeps the learned statistics: those of half a batch are not those of the whole.
COMPARED = """
_base_ = ['{base}']
custom_imports = dict(imports=['mnv4_mm', 'shares'])
custom_hooks = [dict(type='ShareHook')]
model = dict(backbone=dict(norm_eval=True))
train_cfg = dict(val_begin=10**6)
"""
ROUNDED = "model['train_cfg'] = dict(assigner=dict(type='RoundingAssigner'))\n"


def start(repository, processes, tool, *arguments, cwd):
    """Run a tool in one process, or in several with torchrun."""
    command = [sys.executable]
    if processes > 1:
        command += ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={processes}']
    command += [str(part) for part in (repository / 'tools' / tool, *arguments)]
    if processes > 1:
        command += ['--launcher', 'pytorch']
    paths = os.pathsep.join(filter(None, [str(repository / 'tests'), os.environ.get('PYTHONPATH')]))
    environment = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=paths)
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment)


def train(repository, folder, name, processes, config, *arguments, batch=8, options=()):
    """Train in ``folder/name`` with ``batch`` images a step over all processes; return the printed text."""
    arguments = (*arguments, '--cfg-options', f'train_dataloader.batch_size={batch // processes}', *options)
    run = start(repository, processes, 'train.py', config, '--work-dir', folder / name, *arguments, cwd=folder)
    assert run.returncode == 0, run.stderr
    return run.stdout


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def differences(one, two):
    """Return, for each step, the largest relative difference between the mean loss of two processes and that of one."""
    return [
        max(
            abs(sum(share['losses'][name] for share in shares) / 2 / value - 1)
            for name, value in whole['losses'].items()
        )
        for whole, *shares in zip(one, *two, strict=True)
    ]


@pytest.fixture(scope='module')
def folder(repository, tmp_path_factory):
    """A folder with the configs of the training and of the comparison."""
    out = tmp_path_factory.mktemp('distributed')
    for name, text, more in (('segmenter', SEGMENTER, ''), ('detector', DETECTOR, ROUNDED)):
        (out / f'{name}_learned.py').write_text(text.format(repository=repository) + COMMON)
        (out / f'{name}.py').write_text(COMPARED.format(base=f'{name}_learned.py') + more)
    return out


@pytest.fixture(scope='module')
def learned(repository, folder):
    """Train a net for 40 steps in two processes and return the checkpoint.

    Untrained nets cannot be compared: RTMDet divides by the sum of its assignment's weights, but by at least 1 in each
    process, and their sums are less.
    """

    @functools.cache
    def learn(name, length, checkpoint):
        config = folder / f'{name}_learned.py'
        train(repository, folder, config.stem, 2, config, *length)
        return folder / config.stem / checkpoint

    return learn


@pytest.fixture(scope='module')
def segmenter(learned):
    return learned('segmenter', ('--iters', 40), 'iter_40.pth')


@pytest.fixture(scope='module')
def detector(learned):
    return learned('detector', ('--epochs', 5), 'epoch_5.pth')


def check_curves(repository, folder, name, checkpoint, *arguments):
    """Continue a checkpoint in one process and in two, compare them, and return the log lines of the latter."""
    tuned = ('load_from=' + str(checkpoint),)
    train(repository, folder, f'{name}_one', 1, folder / f'{name}.py', *arguments, options=tuned)
    train(repository, folder, f'{name}_two', 2, folder / f'{name}.py', *arguments, options=tuned)
    one = lines(folder / f'{name}_one/process0.jsonl')
    two = [lines(folder / f'{name}_two/process{rank}.jsonl') for rank in (0, 1)]
    assert len(one) >= STEPS
    largest = max(differences(one, two))
    print(
        f'{name}: {len(one)} steps, largest relative difference of a loss {largest:.1e}, moved {one[-1]["moved"]:.4f}'
    )
    assert largest < 1e-8  # 1e-5 is required
    # The weights have moved by the same distance: the losses are not equal because nothing is trained.
    assert one[-1]['moved'] > 1e-3
    for shares in two:
        assert [line['moved'] for line in shares] == pytest.approx([line['moved'] for line in one], rel=1e-8)
    # One process logs the loss of the whole batch; of several, the first logs its own.
    for work_dir, first in ((f'{name}_one', one), (f'{name}_two', two[0])):
        (scalars,) = (folder / work_dir).glob('*/vis_data/scalars.json')
        logged = [line['loss'] for line in lines(scalars) if 'loss' in line]
        # Log lines are means of up to 50 steps.
        losses = [line['losses']['loss'] for line in first]
        means = [sum(losses[: i + 1]) / (i + 1) for i in range(len(losses))]
        assert logged == pytest.approx(means, rel=1e-6)
    for whole, *shares in zip(one, *two, strict=True):
        assert sorted(whole['images']) == sorted(shares[0]['images'] + shares[1]['images'])
    return two


@pytest.mark.slow
def test_a_segmenter_learns_as_in_one_process_and_resumes(repository, folder, segmenter):
    two = check_curves(repository, folder, 'segmenter', segmenter, '--iters', STEPS)
    # Each process gets 13 of the 26 images, then they are shuffled again.
    first_pass = [[name for line in shares for name in line['images']][:13] for shares in two]
    assert len({*first_pass[0], *first_pass[1]}) == 26

    checkpoint = folder / f'segmenter_two/iter_{STEPS // 2}.pth'
    train(repository, folder, 'resumed', 2, folder / 'segmenter.py', '--iters', STEPS, '--resume', checkpoint)
    for rank in (0, 1):
        again, before = lines(folder / f'resumed/process{rank}.jsonl'), two[rank][STEPS // 2 :]
        assert [line['step'] for line in again] == list(range(STEPS // 2 + 1, STEPS + 1))
        for a, b in zip(again, before, strict=True):
            assert a['images'] == b['images']
            assert a['losses'] == pytest.approx(b['losses'], rel=1e-8)


@pytest.mark.slow
def test_a_detector_learns_as_in_one_process(repository, folder, detector):
    two = check_curves(repository, folder, 'detector', detector, '--epochs', 3)
    for epoch in range(3):  # of 64 images, 8 steps
        images = [[name for line in shares[epoch * 8 : epoch * 8 + 8] for name in line['images']] for shares in two]
        assert len(images[0]) == len(images[1]) == 32
        assert len({*images[0], *images[1]}) == 64


@pytest.mark.slow
def test_detection_metrics_are_those_of_one_process(repository, folder, detector):
    metrics, detections = [], []
    # 17 images: one process gets 9, the other 8 and one of them again, which must not count twice.
    options = ['--cfg-options', 'test_dataloader.dataset.indices=17']
    for processes in (1, 2):
        work_dir, out = folder / f'test_detector_{processes}', folder / f'detections_{processes}.json'
        run = start(
            repository, processes, 'test.py', detector, '--work-dir', work_dir, '--out', out,
            '--show-dir', work_dir / 'shown', *options, cwd=folder,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        assert run.stdout.count('ground truth on the left') == 1
        # mmdet's painter draws in the first process only.
        assert len(list((work_dir / 'shown').glob('*.jpg'))) == (17 if processes == 1 else 9)
        metrics.append(json.loads((work_dir / 'metrics.json').read_text()))
        detections.append(json.loads(out.read_text()))
    assert detections[0] == detections[1]
    assert len({detection['image_id'] for detection in detections[0]}) == 17
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-12, abs=1e-12, nan_ok=True)
    print({name: value for name, value in metrics[0].items() if 'bbox' in name})
    # After such a short training AP may be 0 for any detections, so make sure that many different ones are compared.
    assert len({detection['score'] for detection in detections[0]}) > 1000


@pytest.mark.slow
def test_metrics_of_two_processes_while_training_are_those_of_the_checkpoint(repository, folder, detector):
    # Each process has its own batch norm statistics; the checkpoint has those of the first.
    (scalars,) = (folder / 'detector_learned').glob('*/vis_data/scalars.json')
    logged = [line for line in lines(scalars) if 'coco-mini/bbox_mAP' in line][-1]
    run = start(repository, 1, 'test.py', detector, '--work-dir', folder / 'again', cwd=folder)
    assert run.returncode == 0, run.stderr
    metrics = json.loads((folder / 'again/metrics.json').read_text())
    for name in ('bbox_mAP', 'bbox_mAP_50', 'bbox_mAP_m'):
        assert metrics[f'coco-mini/{name}'] == pytest.approx(logged[f'coco-mini/{name}'], rel=1e-9)


@pytest.mark.slow
def test_segmentation_metrics_are_those_of_one_process(repository, folder, segmenter):
    # The config is the checkpoint's, with the settings of its training in two processes.
    metrics, maps = [], []
    for processes in (1, 2):
        work_dir, out = folder / f'test_segmenter_{processes}', folder / f'maps_{processes}'
        run = start(
            repository,
            processes,
            'test.py',
            segmenter,
            '--work-dir',
            work_dir,
            '--out',
            out,
            '--show-dir',
            work_dir / 'shown',
            cwd=folder,
        )
        assert run.returncode == 0, run.stderr
        assert run.stdout.count('class maps: ') == 1
        assert len(list((work_dir / 'shown').glob('*.jpg'))) == 17
        metrics.append(json.loads((work_dir / 'metrics.json').read_text()))
        maps.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert len(maps[0]) == 17
    assert maps[0] == maps[1]
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-12, abs=1e-12)
    assert metrics[0]['ade-mini/mIoU'] > 0


@pytest.mark.parametrize('tool', ['train.py', 'test.py'])
def test_a_mistake_is_one_line_whatever_the_number_of_processes(repository, tmp_path, tool):
    run = start(repository, 2, tool, 'mnv4_ssdlight', 'gone.pth' if tool == 'test.py' else '--amp', cwd=tmp_path)
    assert run.returncode != 0
    assert run.stderr.count('error: no config mnv4_ssdlight') == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('launcher', 'environment', 'message'),
    [
        ('none', dict(TORCHELASTIC_RUN_ID='x', WORLD_SIZE='2'), 'add --launcher pytorch'),
        ('pytorch', {}, r'started by `torchrun --nproc_per_node=N tools/\.\.\.`'),
        ('slurm', {}, 'started by `srun'),
        ('slurm', dict(SLURM_LOCALID='0'), 'needs GPUs'),
        ('mpi', dict(OMPI_COMM_WORLD_LOCAL_RANK='0'), 'needs GPUs'),
        ('torchrun', {}, 'must be one of none, pytorch, slurm, mpi'),
    ],
)
def test_launchers_that_do_not_fit(monkeypatch, launcher, environment, message):
    for name in ('LOCAL_RANK', 'SLURM_LOCALID', 'OMPI_COMM_WORLD_LOCAL_RANK'):
        monkeypatch.setenv(name, '0')  # so that it is put back as it was
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    with pytest.raises(UserError, match=message):
        join_processes(launcher)
