"""The same data in each format trains the same detector: losses and weights to the last bit."""

import dataclasses

import torch
from end_to_end import arguments, last_checkpoint, resized
from write_formats import WRITERS

from mnv4_mm.data.form import TRAIN, VAL
from mnv4_mm.data.formats.recognise import recognise
from mnv4_mm.engine.curves import read_scalars
from mnv4_mm.weights.checkpoint import read_checkpoint

OPTIONS = {
    **resized(160), 'train_dataloader.dataset.times': 1, 'report_on_training_images': False, 'randomness.seed': 0,
    'train_dataloader.num_workers': 0, 'default_hooks.logger.interval': 1,
}  # fmt: skip


def test_the_same_data_in_each_format_has_the_same_loss_curve(repository, call_tool, tmp_path):
    bccd = recognise(repository / 'data/mini/bccd', 'detection')
    part = dataclasses.replace(bccd, splits={TRAIN: bccd.splits[TRAIN][:48], VAL: bccd.splits[VAL][:8]})
    curves, weights = {}, {}
    for name, write in WRITERS.items():
        write(part, tmp_path / name / 'data')
        work_dir = tmp_path / name / 'w'
        run = call_tool(
            'train.py', 'mnv4_ssdlite_coco-mini', '--data', tmp_path / name / 'data', '--work-dir', work_dir,
            '--weights', 'none', '--epochs', 2, *arguments(OPTIONS),
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        curves[name] = read_scalars(work_dir)[0]['loss']
        weights[name] = read_checkpoint(last_checkpoint(work_dir)).content['state_dict']
    first, *others = curves
    assert len(curves[first]) == 12
    assert curves[first][12] < curves[first][1]
    for name in others:
        assert curves[name] == curves[first], name
        assert all(torch.equal(value, weights[name][key]) for key, value in weights[first].items()), name
