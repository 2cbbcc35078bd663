"""Training and testing in several processes, started as a user starts them, and the comparison with one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Only the initial weights and the order of images are random; only the backbone has batch norms.
COMMON = """
randomness = dict(seed=0)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(max_keep_ckpts=-1))
report_on_training_images = False
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
# For the comparison, batch norms keep their statistics: those of half a batch are not those of the whole.
COMPARED = """
_base_ = ['{base}']
custom_imports = dict(imports=['mnv4_mm', 'shares'])
custom_hooks = [dict(type='ShareHook')]
model = dict(backbone=dict(norm_eval=True))
train_cfg = dict(val_begin=10**6)
"""
ROUNDED = "model['train_cfg'] = dict(assigner=dict(type='RoundingAssigner'))\n"


def start(repository, processes, tool, *arguments, cwd):
    """Run a tool in one process or, by torchrun, in several."""
    command = [sys.executable]
    if processes > 1:
        command += ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={processes}']
    command += [str(part) for part in (repository / 'tools' / tool, *arguments)]
    if processes > 1:
        command += ['--launcher', 'pytorch']
    path = os.pathsep.join([str(repository), str(repository / 'tests/helpers')])
    environment = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=path)
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment)


def train(repository, folder, name, processes, config, *arguments, batch=8, options=()):
    """Train in ``folder/name`` with ``batch`` images a step over all processes; return what was printed."""
    arguments = (*arguments, '--cfg-options', f'train_dataloader.batch_size={batch // processes}', *options)
    run = start(repository, processes, 'train.py', config, '--work-dir', folder / name, *arguments, cwd=folder)
    assert run.returncode == 0, run.stderr
    return run.stdout


def lines(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def differences(one, two):
    """Return, per step, the largest relative difference between a loss and the mean of it over two processes."""
    return [
        max(
            abs(sum(share['losses'][name] for share in shares) / 2 / value - 1)
            for name, value in whole['losses'].items()
        )
        for whole, *shares in zip(one, *two, strict=True)
    ]


def write_configs(repository, out):
    """Write configs into a folder: of a net to be trained, and of the runs that are compared."""
    for name, text, more in (('segmenter', SEGMENTER, ''), ('detector', DETECTOR, ROUNDED)):
        (out / f'{name}_learned.py').write_text(text.format(repository=repository) + COMMON)
        (out / f'{name}.py').write_text(COMPARED.format(base=f'{name}_learned.py') + more)
    return out


def check_curves(repository, folder, name, steps, options, *arguments, tolerance=1e-8):
    """Train in one process and in two, compare within a relative tolerance, and return the lines of the latter."""
    train(repository, folder, f'{name}_one', 1, folder / f'{name}.py', *arguments, options=options)
    train(repository, folder, f'{name}_two', 2, folder / f'{name}.py', *arguments, options=options)
    return check_share_of_batches(folder, f'{name}_one', f'{name}_two', steps, tolerance)


def check_share_of_batches(folder, name_of_one, name_of_two, steps, tolerance):
    """Compare a run of one process with one of two, see ``check_curves``."""
    one = lines(folder / f'{name_of_one}/process0.jsonl')
    two = [lines(folder / f'{name_of_two}/process{rank}.jsonl') for rank in (0, 1)]
    assert len(one) >= steps
    largest = max(differences(one, two))
    print(f'{len(one)} steps, largest relative difference of a loss {largest:.1e}, moved {one[-1]["moved"]:.4f}')
    assert largest < tolerance
    # The weights have moved by the same distance; a net that does not learn has equal losses, too.
    assert one[-1]['moved'] > 1e-3
    for shares in two:
        assert [line['moved'] for line in shares] == pytest.approx([line['moved'] for line in one], rel=tolerance)
    # The tools log the loss of the whole batch in one process, and that of the first process in several.
    for work_dir, first in ((name_of_one, one), (name_of_two, two[0])):
        (scalars,) = (folder / work_dir).glob('*/vis_data/scalars.json')
        logged = [line['loss'] for line in lines(scalars) if 'loss' in line]
        # Log lines are means of up to 50 steps.
        losses = [line['losses']['loss'] for line in first]
        means = [sum(losses[: i + 1]) / (i + 1) for i in range(len(losses))]
        assert logged == pytest.approx(means, rel=1e-6)
    for whole, *shares in zip(one, *two, strict=True):
        assert sorted(whole['images']) == sorted(shares[0]['images'] + shares[1]['images'])
    return two
