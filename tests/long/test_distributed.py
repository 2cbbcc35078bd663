"""Two processes on a CPU do the same as one process with the doubled batch: full lengths, detection too."""

import functools
import json

import pytest
from processes import check_curves, lines, start, train, write_configs

STEPS = 20


@pytest.fixture(scope='module')
def folder(repository, tmp_path_factory):
    return write_configs(repository, tmp_path_factory.mktemp('distributed'))


@pytest.fixture(scope='module')
def learned(repository, folder):
    """Train a net for 40 steps in two processes and return the checkpoint.

    Untrained nets cannot be compared: RTMDet divides by the sum of its assignment's weights, but by at least 1 in each
    process, and theirs are less.
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


def test_a_segmenter_learns_as_in_one_process_and_resumes(repository, folder, segmenter):
    two = check_curves(repository, folder, 'segmenter', STEPS, [f'load_from={segmenter}'], '--iters', STEPS)
    # 26 images are 13 for each process, then they are shuffled again.
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


def test_a_detector_learns_as_in_one_process(repository, folder, detector):
    two = check_curves(repository, folder, 'detector', STEPS, [f'load_from={detector}'], '--epochs', 3)
    for epoch in range(3):  # of 64 images, 8 steps
        seen = [[name for line in shares[epoch * 8 : epoch * 8 + 8] for name in line['images']] for shares in two]
        assert len(seen[0]) == len(seen[1]) == 32
        assert len({*seen[0], *seen[1]}) == 64


def test_detection_metrics_are_those_of_one_process(repository, folder, detector):
    metrics, detections = [], []
    # 17 images: one process has 9, the other 8 and one of them again, which must not count twice.
    options = ['--cfg-options', 'test_dataloader.dataset.indices=17']
    for processes in (1, 2):
        work_dir, out = folder / f'test_detector_{processes}', folder / f'detections_{processes}.json'
        run = start(
            repository, processes, 'test.py', detector, '--work-dir', work_dir, '--out', out,
            '--show-dir', work_dir / 'shown', *options, cwd=folder,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        assert run.stdout.count('ground truth on the left') == 1
        assert len(list((work_dir / 'shown').rglob('*.jpg'))) == 17
        metrics.append(json.loads((work_dir / 'metrics.json').read_text()))
        detections.append(json.loads(out.read_text()))
    assert detections[0] == detections[1]
    assert len({found['image_id'] for found in detections[0]}) == 17
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-12, abs=1e-12, nan_ok=True)
    print({name: value for name, value in metrics[0].items() if 'bbox' in name})
    # After so short a training AP may be 0: the comparison is of many different detections.
    assert len({found['score'] for found in detections[0]}) > 1000


def test_what_two_processes_measure_while_training_is_the_checkpoint_s(repository, folder, detector):
    # Each process has batch norm statistics of its own; the checkpoint has those of the first.
    (scalars,) = (folder / 'detector_learned').glob('*/vis_data/scalars.json')
    seen = [line for line in lines(scalars) if 'coco-mini/bbox_mAP' in line][-1]
    run = start(repository, 1, 'test.py', detector, '--work-dir', folder / 'again', cwd=folder)
    assert run.returncode == 0, run.stderr
    metrics = json.loads((folder / 'again/metrics.json').read_text())
    for name in ('bbox_mAP', 'bbox_mAP_50', 'bbox_mAP_m'):
        assert metrics[f'coco-mini/{name}'] == pytest.approx(seen[f'coco-mini/{name}'], rel=1e-9)


def test_segmentation_metrics_are_those_of_one_process(repository, folder, segmenter):
    # The config is the checkpoint's, which says that it was trained by two processes.
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
        assert len(list((work_dir / 'shown').rglob('*.jpg'))) == 17
        metrics.append(json.loads((work_dir / 'metrics.json').read_text()))
        maps.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert len(maps[0]) == 17
    assert maps[0] == maps[1]
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-12, abs=1e-12)
    assert metrics[0]['ade-mini/mIoU'] > 0
