"""A teacher adds losses to a student, and changes nothing else: initial weights, images, files."""

import copy
import functools
from pathlib import Path
from unittest import mock

import mmdet
import numpy as np
import onnx
import pytest
import torch
from end_to_end import IN_PROCESS, arguments, resized
from mmdet.datasets import CocoDataset
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.model import ExponentialMovingAverage
from mmengine.optim import build_optim_wrapper
from mmengine.runner.checkpoint import get_state_dict
from processes import start
from torch import nn

from mnv4_mm.apis.model import load_model
from mnv4_mm.apis.train import train
from mnv4_mm.config.backbone import with_backbone
from mnv4_mm.config.load import load_config
from mnv4_mm.config.options import TrainOptions
from mnv4_mm.config.teacher import check_teacher
from mnv4_mm.config.training import training_config
from mnv4_mm.deploy.export import export
from mnv4_mm.engine.distillation import add_teacher, attach_teacher, channel_wise_loss, match_strides, pearson_loss
from mnv4_mm.engine.step import compile_parts, use_channels_last
from mnv4_mm.errors import UserError
from mnv4_mm.tasks import build_model
from mnv4_mm.weights.checkpoint import read_checkpoint

DETECTORS = ['mnv4_ssdlite_coco', 'mnv4_retinanet_coco', 'mnv4_rtmdet_coco']
SEGMENTERS = ['mnv4_lraspp_ade20k', 'mnv4_fpn_ade20k', 'mnv4_deeplabv3plus_ade20k', 'mnv4_segformer_ade20k']
MAPS, LOGITS = 'loss_distill_maps', 'loss_distill_logits'


def config(name, backbone='mnv4_conv_s'):
    cfg = load_config(name)
    cfg.model.backbone.pop('init_cfg', None)
    cfg = with_backbone(cfg, backbone)
    cfg.model.backbone.pop('init_cfg', None)
    cfg.model.backbone.pop('drop_path_rate', None)
    return cfg


def built(cfg, seed=0):
    torch.manual_seed(seed)
    model = build_model(cfg)
    model.init_weights()
    return model


def save(model, cfg, path, classes=()):
    meta = dict(cfg=cfg.pretty_text, dataset_meta=dict(classes=tuple(classes)))
    torch.save(dict(meta=meta, state_dict=model.state_dict()), path)
    return str(path)


def losses(student, batch):
    student.train()
    torch.manual_seed(1)  # of dropout
    detector = hasattr(student, 'bbox_head')
    if not detector:
        student.data_preprocessor.size = (64, 64)
    data = demo_mm_inputs(2, [[3, 64, 64]] * 2, num_classes=80) if detector else batch(64, 64)
    return student(**student.data_preprocessor(copy.deepcopy(data), training=True), mode='loss')


def total(values):
    return sum(value.mean() for value in (values if isinstance(values, list) else [values]))


@pytest.mark.parametrize('name', DETECTORS + SEGMENTERS)
def test_every_head_learns_from_a_teacher(name, segmentation_batch):
    """Teacher and student differ in width, so that LR-ASPP, DeepLabV3+ and SegFormer need projectors."""
    cfg = config(name)
    student, teacher = built(cfg), built(config(name, 'mnv4_conv_m'), 1)
    plain, names = losses(student, segmentation_batch), list(student.state_dict())
    add_teacher(student, teacher, logits_weight=1.0)
    optimizer = build_optim_wrapper(student, cfg.optim_wrapper)
    found = losses(student, segmentation_batch)
    assert found.keys() - plain.keys() == {MAPS, LOGITS}
    for key, values in plain.items():  # the head's own losses are as they were
        torch.testing.assert_close(total(found[key]), total(values), rtol=1e-3, atol=1e-4)
    value = total(found[MAPS])
    assert value.isfinite()
    assert value > 0
    assert total(found[LOGITS]).isfinite()
    before = [projector.weight.clone() for projector in student.distillation.projectors if hasattr(projector, 'weight')]
    assert bool(before) == (name not in ('mnv4_retinanet_coco', 'mnv4_rtmdet_coco', 'mnv4_fpn_ade20k'))
    frozen = {key: tensor.clone() for key, tensor in teacher.state_dict().items()}
    optimizer.update_params(value)
    assert list(student.state_dict()) == names
    assert get_state_dict(student).keys() == set(names)  # mmengine's own, which checkpoints use
    assert not teacher.training
    assert all(torch.equal(frozen[key], tensor) for key, tensor in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    after = [projector.weight for projector in student.distillation.projectors if hasattr(projector, 'weight')]
    assert all(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize('name', ['mnv4_rtmdet_coco', 'mnv4_lraspp_ade20k'])
def test_gradients_reach_the_first_layer(name, segmentation_batch):
    student = built(config(name))
    add_teacher(student, built(config(name), 1))
    total(losses(student, segmentation_batch)[MAPS]).backward()
    gradient = student.backbone.conv_stem.weight.grad
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize('loss', ['cwd', 'pkd'])
@pytest.mark.parametrize('name', ['mnv4_ssdlite_coco', 'mnv4_fpn_ade20k'])
def test_a_student_that_equals_its_teacher_has_no_loss(name, loss, segmentation_batch):
    student = built(config(name))
    for part in student.modules():  # batch statistics would differ from the running ones of the teacher
        if isinstance(part, nn.BatchNorm2d):
            part.train = lambda mode=True, part=part: nn.Module.train(part, False)
        if isinstance(part, nn.Dropout2d):
            part.p = 0.0
    teacher = built(config(name))
    teacher.load_state_dict(student.state_dict())
    add_teacher(student, teacher, loss=loss, logits_weight=1.0, bf16=False)
    found = losses(student, segmentation_batch)
    assert abs(total(found[LOGITS]).item()) < 1e-4
    assert abs(total(found[MAPS]).item()) < 1e-4


def test_losses_are_those_of_the_papers():
    """numpy in float64, from the formulas of arXiv 2011.13256 (equation 4) and 2207.02039 (equation 3)."""
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 2, 3, 4, 5))
    expected = 0.0
    for n in range(2):
        for c in range(3):
            p, q = (np.exp(x[n, c] / 4) / np.exp(x[n, c] / 4).sum() for x in (teacher, student))
            expected += 16 * (p * np.log(p / q)).sum() / 6
    a, b = torch.tensor(student), torch.tensor(teacher)
    assert float(channel_wise_loss(a, b, 4.0)) == pytest.approx(expected, rel=1e-4)
    rows = [x.transpose(1, 0, 2, 3).reshape(3, -1) for x in (student, teacher)]
    correlations = [np.corrcoef(x, y)[0, 1] for x, y in zip(*rows, strict=True)]
    assert float(pearson_loss(a, b)) == pytest.approx(1 - np.mean(correlations), rel=1e-4)
    assert float(channel_wise_loss(a, a)) == pytest.approx(0, abs=1e-6)
    assert float(pearson_loss(3 * a + 1, a)) == pytest.approx(0, abs=1e-5)


def test_feature_maps_are_matched_by_stride():
    assert match_strides([8, 16, 32], [4, 8, 16, 32]) == [(0, 1), (1, 2), (2, 3)]
    assert match_strides([4, 8, 16], [4, 16, 16]) == [(0, 0), (2, 2)]
    assert match_strides([4, 8], [16, 32]) == []


def test_the_teacher_sees_the_same_image_with_its_own_normalisation(segmentation_batch):
    cfg = config('mnv4_lraspp_ade20k')
    student = built(cfg)
    cfg.model.data_preprocessor.update(mean=[1.0, 20.0, 30.0], std=[4.0, 50.0, 6.0], bgr_to_rgb=False)
    teacher = built(cfg)
    received = []
    add_teacher(student, teacher, bf16=False)
    teacher.backbone.register_forward_pre_hook(lambda _, inputs: received.append(inputs[0]))
    batch = segmentation_batch(64, 64)
    losses(student, segmentation_batch)
    teacher.data_preprocessor.size = (64, 64)
    expected = teacher.data_preprocessor(batch, training=True)['inputs']
    torch.testing.assert_close(received[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings('ignore')  # of the compiler
@pytest.mark.parametrize('change', [use_channels_last, pytest.param(compile_parts, marks=pytest.mark.long)])
def test_memory_format_and_compilation_keep_the_losses(change, segmentation_batch, monkeypatch):
    monkeypatch.setattr(torch, 'compile', functools.partial(torch.compile, backend='aot_eager'))
    found = []
    for applied in (None, change):
        student = built(config('mnv4_lraspp_ade20k'))
        add_teacher(student, built(config('mnv4_lraspp_ade20k', 'mnv4_conv_m'), 1), logits_weight=1.0, bf16=False)
        torch.manual_seed(3)
        for projector in student.distillation.projectors:
            projector.reset_parameters()
        if applied:
            applied(student)
        values = losses(student, segmentation_batch)
        found.append([float(total(values[key])) for key in (MAPS, LOGITS)])
    assert found[1] == pytest.approx(found[0], rel=1e-3)


def test_running_out_of_memory_is_not_blamed_on_bfloat16(segmentation_batch, monkeypatch):
    cfg = config('mnv4_lraspp_ade20k')
    distiller = add_teacher(built(cfg), built(cfg, 1), bf16=True)
    for error, expected in ((torch.OutOfMemoryError('full'), torch.OutOfMemoryError), (RuntimeError('no'), UserError)):
        monkeypatch.setattr(distiller._teacher.net, 'extract_feat', mock.Mock(side_effect=error))
        with pytest.raises(expected):
            distiller._run_teacher(torch.zeros(1, 3, 64, 64))


def test_ema_copies_no_teacher(segmentation_batch):
    student, teacher = built(config('mnv4_lraspp_ade20k')), built(config('mnv4_lraspp_ade20k'), 1)
    add_teacher(student, teacher)
    average = ExponentialMovingAverage(student, update_buffers=True)
    average.update_parameters(student)
    assert average.module.distillation._teacher.net is teacher
    assert {key.removeprefix('module.') for key in average.state_dict()} - {'steps'} == student.state_dict().keys()
    average.module.load_state_dict(student.state_dict())


@pytest.fixture
def teacher_file(tmp_path, few):
    """Return a function that writes the checkpoint of a head that is not trained, with the classes of ``few``."""

    def write(name, backbone='mnv4_conv_m', **meta):
        options = TrainOptions(data=str(few), backbone=backbone, weights='none', work_dir=str(tmp_path / 'w'))
        cfg = training_config(name, options, log=lambda _: None)
        classes = cfg.train_dataloader.dataset.get('dataset', cfg.train_dataloader.dataset).metainfo.classes
        return save(built(cfg, 5), cfg, tmp_path / f'{name}.pth', meta.get('classes', classes))

    return write


def options_of(name):
    """Return options for two steps a epoch or checkpoint, in this process."""
    options = {**IN_PROCESS, 'train_cfg.val_interval': 1 if '_coco' in name else 4}
    if '_coco' in name:
        options |= resized(64)
        return {**options, 'train_dataloader.batch_size': 2, 'train_dataloader.dataset.times': 1}
    return {**options, 'train_dataloader.batch_size': 2, 'default_hooks.checkpoint.interval': 2}


def run(name, few, folder, length, **more):
    unit = 'epochs' if '_coco' in name else 'iters'
    more.setdefault('cfg_options', {})
    more['cfg_options'] = {**options_of(name), 'randomness.seed': 3, **more['cfg_options']}
    train(name, data=str(few), work_dir=str(folder), weights='none', **{unit: length}, **more)
    files = {path.name: path for path in folder.glob('*.pth')}
    return files


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize(
    'name', ['mnv4_lraspp_ade20k-mini', pytest.param('mnv4_ssdlite_coco-mini', marks=pytest.mark.long)]
)
def test_a_run_with_a_teacher_is_resumed_and_its_file_is_a_students(name, few, tmp_path, teacher_file):
    teacher = teacher_file(name)
    names = [f'iter_{i}.pth' for i in (2, 4)] if 'ade' in name else [f'epoch_{i}.pth' for i in (1, 2)]
    lengths = (4, 4) if 'ade' in name else (2, 2)
    maps = {'distillation.weight': 1}
    whole = run(name, few, tmp_path / 'a', lengths[0], teacher=teacher, cfg_options=maps)
    first = read_checkpoint(whole[names[0]]).content
    # A checkpoint of the middle, continued in a new folder.
    resumed = dict(teacher=teacher, resume=str(whole[names[0]]))
    again = run(name, few, tmp_path / 'b', lengths[1], cfg_options=maps, **resumed)
    a, b = (read_checkpoint(files[names[1]]).content for files in (whole, again))
    for key in ('state_dict', 'optimizer', 'distillation'):
        assert same(a[key], b[key]), key
    assert not same(first['distillation']['projectors'], a['distillation']['projectors'])
    plain = run(name, few, tmp_path / 'c', lengths[0])
    student = read_checkpoint(plain[names[1]]).content
    assert list(a['state_dict']) == list(student['state_dict'])
    assert {key: value.shape for key, value in a['state_dict'].items()} == {
        key: value.shape for key, value in student['state_dict'].items()
    }
    assert not same(a['state_dict'], student['state_dict'])  # the teacher has an effect
    assert 'distillation' not in student
    for file, path in whole.items():
        if file.startswith('best'):
            assert 'distillation' not in read_checkpoint(path).content
    taught, untaught = (load_model(str(files[names[1]])) for files in (whole, plain))
    assert not hasattr(taught, 'distillation')
    assert taught.cfg.model == untaught.cfg.model
    for resume, teacher_of_it, message in [
        (whole[names[0]], None, 'with a teacher: continue it with the same --teacher'),
        (plain[names[0]], teacher, 'without a teacher: continue it without --teacher'),
        (whole[names[0]], str(plain[names[1]]), 'with another teacher'),
    ]:
        with pytest.raises(UserError, match=message):
            run(name, few, tmp_path / 'd', lengths[0], resume=str(resume), teacher=teacher_of_it)
    with pytest.raises(UserError, match=r'was trained with distillation.weight=[\d.]+, not 3'):
        run(name, few, tmp_path / 'd', lengths[0], cfg_options={'distillation.weight': 3}, **resumed)
    with pytest.raises(UserError, match=r'another student|does not fit'):
        run(name, few, tmp_path / 'e', lengths[0], backbone='mnv4_conv_m', cfg_options=maps, **resumed)
    assert not (tmp_path / 'd').exists()
    logged = ''.join(path.read_text() for path in (tmp_path / 'a').glob('*/vis_data/scalars.json'))
    assert '"loss_distill_maps"' in logged


def test_a_seed_draws_the_same_numbers_with_a_teacher(tmp_path):
    cfg = config('mnv4_lraspp_ade20k', 'mnv4_conv_m')
    teacher = save(built(cfg), cfg, tmp_path / 'teacher.pth')
    cfg = training_config('mnv4_lraspp_ade20k', TrainOptions(weights='none', teacher=teacher))
    student, state = build_model(cfg), torch.get_rng_state()
    attach_teacher(student, cfg.distillation)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_loss_of_the_teacher_that_is_not_finite_stops_the_run(few, tmp_path, teacher_file):
    name = 'mnv4_lraspp_ade20k-mini'
    with pytest.raises(UserError, match=r'loss_distill_maps\[2\] is inf at step 1'):
        run(name, few, tmp_path / 'a', 1, teacher=teacher_file(name), cfg_options={'distillation.weight': 3e38})
    assert [path.name for path in (tmp_path / 'a').glob('*.pth')] == ['last_good.pth']
    assert not any('distill' in key for key in read_checkpoint(tmp_path / 'a/last_good.pth').content['state_dict'])


@pytest.mark.long
def test_two_processes_train_with_a_teacher(repository, few, tmp_path, teacher_file):
    name = 'mnv4_ssdlite_coco-mini'  # its projectors are trained, RTMDet has none
    options = arguments({**options_of(name), 'default_hooks.logger.interval': 1})
    done = start(
        repository, 2, 'train.py', name, '--data', few, '--weights', 'none', '--teacher', teacher_file(name),
        '--epochs', 1, '--work-dir', tmp_path / 'a', '--no-report', *options, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 'loss_distill_maps' in done.stdout
    projectors = read_checkpoint(tmp_path / 'a/epoch_1.pth').content['distillation']['projectors']
    assert projectors
    assert all(tensor.isfinite().all() for tensor in projectors.values())


@pytest.mark.long
def test_the_exported_graph_is_a_students(few, tmp_path, teacher_file):
    name = 'mnv4_lraspp_ade20k-mini'
    graphs = []
    for folder, teacher in (('a', teacher_file(name)), ('b', None)):
        files = run(name, few, tmp_path / folder, 2, teacher=teacher)
        file = export(str(files['iter_2.pth']), to=['onnx'], out_dir=str(tmp_path / folder))[0]
        graph = onnx.load(str(getattr(file, 'path', file))).graph
        graphs.append([(node.op_type, len(node.input)) for node in graph.node])
        graphs.append([(tensor.name, tuple(tensor.dims)) for tensor in graph.initializer])
    assert graphs[:2] == graphs[2:]


FOREIGN = dict(
    default_scope='mmseg',
    model=dict(
        type='EncoderDecoder',
        data_preprocessor=dict(type='SegDataPreProcessor', mean=[0.0] * 3, std=[255.0] * 3, bgr_to_rgb=True),
        backbone=dict(
            type='ResNetV1c', depth=18, base_channels=8, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4), num_stages=4,
            out_indices=(0, 1, 2, 3), norm_cfg=dict(type='SyncBN'),
        ),
        decode_head=dict(type='FCNHead', in_channels=64, in_index=3, channels=8, num_convs=1, num_classes=3),
    ),
)  # fmt: skip


def test_a_model_of_mmseg_teaches(few, tmp_path):
    """Its config is in its checkpoint, or given. Its norm is synchronised, and its output stride is 8."""
    cfg = Config(copy.deepcopy(FOREIGN))
    path = save(built(cfg), cfg, tmp_path / 'fcn.pth')
    torch.save(dict(state_dict=torch.load(path, weights_only=False)['state_dict']), tmp_path / 'bare.pth')
    cfg.dump(tmp_path / 'fcn.py')
    for settings in (dict(teacher=path), dict(teacher=tmp_path / 'bare.pth', teacher_config=tmp_path / 'fcn.py')):
        student = training_config('mnv4_lraspp_ade20k', TrainOptions(weights='none', **settings))
        assert 'cwd, weight 0.1, feature maps of output stride 4, 8' in check_teacher(student)
    cfg.model.decode_head.type = 'NoSuchHead'
    cfg.dump(tmp_path / 'unknown.py')
    student = training_config(
        'mnv4_lraspp_ade20k', TrainOptions(weights='none', teacher=path, teacher_config=tmp_path / 'unknown.py')
    )
    with pytest.raises(UserError, match=r'its model cannot be built here: KeyError: .*NoSuchHead'):
        check_teacher(student)
    student = training_config('mnv4_lraspp_ade20k', TrainOptions(weights='none', teacher=path))
    (tmp_path / 'fcn.pth').write_bytes((tmp_path / 'bare.pth').read_bytes())
    with pytest.raises(UserError, match='has been replaced'):
        check_teacher(student)
    with pytest.raises(UserError, match='carries no config: name the one it was trained with by --teacher-config'):
        training_config('mnv4_lraspp_ade20k', TrainOptions(teacher=tmp_path / 'bare.pth'))


def test_a_model_of_mmdet_teaches(tmp_path):
    """RetinaNet on ResNet-18 as mmdet configures it, from a checkpoint of which the config is a part."""
    folder = Path(mmdet.__file__).parent / '.mim/configs'
    cfg = Config.fromfile(folder / 'retinanet/retinanet_r18_fpn_1x_coco.py')
    cfg.model.backbone.init_cfg = None
    path = save(built(cfg), cfg, tmp_path / 'retinanet.pth', CocoDataset.METAINFO['classes'])
    student = training_config('mnv4_retinanet_coco', TrainOptions(weights='none', teacher=path))
    assert 'pkd, weight 6, feature maps of output stride 8, 16, 32, 64, 128' in check_teacher(student)


def test_segmenters_distil_class_scores_where_the_classes_are_the_same(few, teacher_file):
    same = teacher_file('mnv4_lraspp_ade20k-mini', 'mnv4_conv_s')

    def settings(teacher, **changes):
        options = TrainOptions(data=str(few), weights='none', teacher=teacher, cfg_options=changes)
        found = training_config('mnv4_lraspp_ade20k-mini', options, log=lambda _: None).distillation
        return found.loss, found.weight, found.logits_weight, found.temperature

    assert settings(same) == ('cwd', 0, 3, 4)
    assert settings(same, **{'distillation.weight': 2}) == ('cwd', 2, 0, 1)
    assert settings(same, **{'distillation.logits_weight': 1}) == ('cwd', 0.1, 1, 1)
    other = teacher_file('mnv4_lraspp_ade20k-mini', 'mnv4_conv_s', classes=['a', 'b'])
    assert settings(other) == ('cwd', 0.1, 0, 1)


def test_mistakes_are_one_line(few, tmp_path, teacher_file):
    segmenter, detector = (
        teacher_file(name, 'mnv4_conv_s') for name in ('mnv4_lraspp_ade20k-mini', 'mnv4_rtmdet_coco-mini')
    )

    def check(name, **options):
        changed = options.pop('cfg_options', {})
        cfg = training_config(
            name, TrainOptions(data=str(few), weights='none', cfg_options=changed, **options), log=lambda _: None
        )
        return check_teacher(cfg)

    with pytest.raises(UserError, match='a detection model needs a teacher of the same task'):
        check('mnv4_rtmdet_coco-mini', teacher=segmenter)
    only = {'model.backbone.out_indices': (3,), 'distillation.weight': 1}
    with pytest.raises(UserError, match='have output strides 4, 8, 16, those of the student 32; at least one must be'):
        check('mnv4_segformer_ade20k-mini', teacher=segmenter, cfg_options=only)
    for value, message in [
        ({'distillation.loss': 'l2'}, "distillation.loss must be one of cwd, pkd, got 'l2'"),
        ({'distillation.weight': -1}, 'distillation.weight must be a number of at least 0'),
        ({'distillation.temperature': 0}, 'distillation.temperature must be a positive number'),
        ({'distillation.wait': 1}, 'distillation.wait is unknown'),
        ({'distillation.bf16': 'yes'}, 'distillation.bf16 must be'),
    ]:
        with pytest.raises(UserError, match=message):
            check('mnv4_rtmdet_coco-mini', teacher=detector, cfg_options=value)
    with pytest.raises(UserError, match='no effect without a teacher'):
        check('mnv4_rtmdet_coco-mini', cfg_options={'distillation.loss': 'cwd'})
    with pytest.raises(UserError, match='--teacher-config has no effect without --teacher'):
        TrainOptions(teacher_config='x.py')
    logits = {'distillation.logits_weight': 1}
    assert 'logits with weight 1' in check('mnv4_rtmdet_coco-mini', teacher=detector, cfg_options=logits)
    with pytest.raises(UserError, match='the class scores of the student have shapes'):
        check('mnv4_ssdlite_coco-mini', teacher=detector, cfg_options=logits)
    other = teacher_file('mnv4_rtmdet_coco-mini', 'mnv4_conv_s', classes=['a', 'b'])
    with pytest.raises(UserError, match=r'same order: label 0 is a in .* and disc in the data \(2 and 6 classes\)'):
        check('mnv4_rtmdet_coco-mini', teacher=other, cfg_options=logits)
