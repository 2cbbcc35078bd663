"""Two processes on a CPU, started as a user starts them, do the same as one process with the doubled batch.

In full length, and with the detector whose assignment is the hardest to compare: tests/long/test_distributed.py.
"""

import json

import pytest
import torch
from end_to_end import arguments, last_checkpoint
from processes import check_curves, lines, start, train, write_configs

from mnv4_mm.apis.evaluate import evaluate_files
from mnv4_mm.apis.launch import prepare_processes
from mnv4_mm.errors import UserError
from mnv4_mm.weights.checkpoint import read_checkpoint

STEPS = 8
# Smaller images than the config's, for speed.
SMALL = ['train_dataloader.dataset.pipeline.2.scale=(96,96)', 'model.data_preprocessor.size=(96,96)']
# AdamW turns rounding of small gradients into steps: from random weights 2e-8 after 8 steps, in float64. The target is
# 1e-5; gradients that are not averaged differ by more than 1e-2.
TOLERANCE = 1e-6


def test_a_segmenter_trains_as_in_one_process_and_resumes(repository, tmp_path):
    folder = write_configs(repository, tmp_path)
    two = check_curves(repository, folder, 'segmenter', STEPS, SMALL, '--iters', STEPS, tolerance=TOLERANCE)
    # 26 images are 13 for each process, then they are shuffled again.
    first_pass = [[name for line in shares for name in line['images']][:13] for shares in two]
    assert len({*first_pass[0], *first_pass[1]}) == 26

    checkpoint = folder / f'segmenter_two/iter_{STEPS // 2}.pth'
    more = ('--iters', STEPS, '--resume', checkpoint)
    train(repository, folder, 'resumed', 2, folder / 'segmenter.py', *more, options=SMALL)
    for rank in (0, 1):
        again, before = lines(folder / f'resumed/process{rank}.jsonl'), two[rank][STEPS // 2 :]
        assert [line['step'] for line in again] == list(range(STEPS // 2 + 1, STEPS + 1))
        for a, b in zip(again, before, strict=True):
            assert a['images'] == b['images']
            assert a['losses'] == pytest.approx(b['losses'], rel=TOLERANCE)


@pytest.mark.long
def test_a_supernet_trains_as_in_one_process(repository, tmp_path):
    """All processes train the same nets in a step, and average the gradients of all of them."""
    folder = write_configs(repository, tmp_path)
    config = folder / 'segmenter.py'
    # A supernet's batch norms always use the batch, which two processes divide.
    text = config.read_text().replace('norm_eval=True', "norm_cfg=dict(type='GN', num_groups=1)")
    config.write_text(text)
    check_curves(
        repository, folder, 'segmenter', STEPS, SMALL, '--space', 'small', '--iters', STEPS, tolerance=TOLERANCE
    )


@pytest.mark.parametrize(
    'name', ['mnv4_retinanet_coco-mini', pytest.param('mnv4_lraspp_ade20k-mini', marks=pytest.mark.long)]
)
def test_metrics_are_those_of_one_process(name, repository, tmp_path, learned, drawn):
    """Of 19 images each process has ten: one image is measured twice and must count once.

    All processes have one thread and measure one image at a time: the same kernels, so the same bits.
    """
    checkpoint = last_checkpoint(learned(name))
    detection = '_coco' in name
    options = {'test_dataloader.dataset.indices': 19, 'test_dataloader.batch_size': 1}
    folders = [tmp_path / 'one', tmp_path / 'two']
    out = [folder.with_suffix('.json') if detection else folder / 'class_maps' for folder in folders]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        evaluate_files(
            None, checkpoint, data=str(drawn), work_dir=str(folders[0]), out=str(out[0]),
            show_dir=str(folders[0] / 'shown'), cfg_options=options,
        )  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    run = start(
        repository, 2, 'test.py', checkpoint, '--data', drawn, '--work-dir', folders[1], '--out', out[1],
        '--show-dir', folders[1] / 'shown', *arguments(options), cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.count('ground truth on the left') == 1
    assert [len(list(folder.glob('shown/**/*.jpg'))) for folder in folders] == [19, 19]
    one, two = (json.loads((folder / 'metrics.json').read_text()) for folder in folders)
    assert one == pytest.approx(two, rel=1e-12, abs=1e-12, nan_ok=True)
    assert one['shapes/bbox_mAP_50' if detection else 'shapes/mIoU'] > 0
    if detection:
        detections = [json.loads(path.read_text()) for path in out]
        assert detections[0] == detections[1]
        # More images than one process has. A net that was trained for seconds need not detect something in all.
        assert 10 < len({found['image_id'] for found in detections[0]}) <= 19
    else:
        class_maps = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in out]
        assert len(class_maps[0]) == 19
        assert class_maps[0] == class_maps[1]


@pytest.mark.parametrize('tool', ['train.py', 'test.py'])
def test_a_mistake_is_one_line_in_two_processes(repository, tmp_path, tool):
    run = start(repository, 2, tool, 'mnv4_ssdlight', 'gone.pth' if tool == 'test.py' else '--amp', cwd=tmp_path)
    assert run.returncode != 0
    assert run.stderr.count('error: no config mnv4_ssdlight') == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('launcher', 'environment', 'message'),
    [
        ('none', dict(TORCHELASTIC_RUN_ID='x', WORLD_SIZE='2'), 'add --launcher pytorch'),
        ('pytorch', {}, r'started by `torchrun --nproc_per_node=N -m mnv4_mm \.\.\.`'),
        ('slurm', {}, 'started by `srun'),
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
        prepare_processes(launcher)


@pytest.mark.long
def test_fine_tuning_for_int8_in_two_processes(repository, tmp_path, learned, few):
    """The main process quantises and exports; both train from its checkpoint."""
    name = 'mnv4_lraspp_ade20k-mini'
    start_from = last_checkpoint(learned(name))
    more = ('--data', few, '--qat', start_from, '--iters', 4)
    output = train(repository, tmp_path, 'int8', 2, repository / f'configs/{name}.py', *more, batch=2)
    assert output.count('layers stay in float') == 1
    state = read_checkpoint(last_checkpoint(tmp_path / 'int8')).content['state_dict']
    before = read_checkpoint(tmp_path / 'int8/qat_start.pth').content['state_dict']
    moved = [key for key in state if key.endswith('.high') and not torch.equal(state[key], before[key])]
    assert moved
    assert list((tmp_path / 'int8/exported').glob('*_int8*.onnx'))
