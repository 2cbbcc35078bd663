"""A supernet trains its largest, its smallest and random nets in each step, and stays an ordinary model."""

import copy

import pytest
import torch
from end_to_end import IN_PROCESS
from mmdet.registry import TASK_UTILS
from mmdet.testing import demo_mm_inputs
from mmengine.registry import DefaultScope
from mmengine.runner.checkpoint import get_state_dict

from mnv4_mm.apis.train import train
from mnv4_mm.config.checkpoint import checkpoint_config
from mnv4_mm.config.load import load_config
from mnv4_mm.config.options import TrainOptions
from mnv4_mm.config.supernet import check_supernet, set_supernet, space_of, with_subnet
from mnv4_mm.config.training import training_config
from mnv4_mm.data.formats.configured import innermost_dataset
from mnv4_mm.data.held_out import image_names, is_held_out
from mnv4_mm.data.loading import innermost
from mnv4_mm.engine.amp import Bf16OptimWrapper
from mnv4_mm.engine.loaders import prepare_loader
from mnv4_mm.engine.sandwich import scaled_batch, train_supernet
from mnv4_mm.errors import UserError
from mnv4_mm.models.arch import arch_to_dict
from mnv4_mm.models.space import SMALL, at_scale
from mnv4_mm.models.supernet import ANCHOR_CODER, subnet_model, subnet_state
from mnv4_mm.tasks import build_model
from mnv4_mm.weights.checkpoint import read_checkpoint

HEADS = [
    'mnv4_ssdlite_coco', 'mnv4_retinanet_coco', 'mnv4_rtmdet_coco',
    'mnv4_lraspp_ade20k', 'mnv4_fpn_ade20k', 'mnv4_deeplabv3plus_ade20k', 'mnv4_segformer_ade20k',
]  # fmt: skip


def supernet(name):
    cfg = set_supernet(load_config(name), TrainOptions(space='small'))
    if 'decode_head' in cfg.model:
        cfg.model.decode_head.dropout_ratio = 0  # so that losses can be compared
    torch.manual_seed(0)
    return cfg, build_model(cfg)


def batch_of(model, segmentation_batch):
    if hasattr(model, 'bbox_head'):
        data = demo_mm_inputs(2, [[3, 64, 64]] * 2, num_classes=80)
    else:
        model.data_preprocessor.size = (64, 64)
        data = segmentation_batch(64, 64)
    return model.data_preprocessor(copy.deepcopy(data), training=True)


def total(losses):
    values = [value for name, value in losses.items() if 'loss' in name]
    return sum(part.mean() for value in values for part in (value if isinstance(value, list) else [value]))


@pytest.mark.parametrize(('name', 'number'), [*((name, 0) for name in HEADS), (HEADS[0], 2), (HEADS[3], 2)])
def test_losses_are_those_of_ordinary_nets(name, number, segmentation_batch):
    """Each net of a step is an ordinary model of an ordinary config with a part of the weights."""
    cfg, model = supernet(name)
    batch = batch_of(model, segmentation_batch)
    names = list(model.state_dict())
    own = model.train()(**batch, mode='loss')
    sandwich = train_supernet(model, cfg.model.to_dict(), cfg.supernet, cfg.input_size, cfg.default_scope, seed=0)
    sandwich.step = next(step for step in range(100) if step_size(sandwich, step) == number)
    norms = {key: value.clone() for key, value in model.named_buffers() if key.endswith('running_mean')}
    found = model(**batch, mode='loss')
    assert found.keys() - own.keys() == {'loss_nets', 'loss_nets_distill'}
    assert list(model.state_dict()) == names == list(get_state_dict(model))
    changed = [not torch.equal(norms[key], value) for key, value in model.named_buffers() if key in norms]
    assert set(changed) == {number == 2}  # by the largest net with the largest input only
    nets = sandwich.nets()
    assert len(nets) == len(found['loss_nets']) + 1 == 4
    assert nets[:2] == [at_scale(SMALL.largest(), number), at_scale(SMALL.smallest(), number)]
    assert {genes[-1] for genes in nets} == {number}
    assert nets == sandwich.nets()
    inputs, samples = scaled_batch(batch['inputs'], batch['data_samples'], SMALL.scales[number])
    losses = [total({key: found[key] for key in own}), *found['loss_nets']]
    for genes, loss in zip(nets, losses, strict=True):
        plain = build_model(with_subnet(cfg, genes))
        shapes = {key: value.shape for key, value in plain.state_dict().items()}
        plain.load_state_dict(subnet_state(model.state_dict(), shapes, SMALL.subnet(genes).rows))
        expected = total(plain.train()(inputs, samples, mode='loss')) / 4
        # DeepLabV3+ normalises maps of 1x1 over two images, which magnifies rounding.
        rtol = 1e-3 if 'deeplab' in name else 1e-5
        torch.testing.assert_close(loss, expected, rtol=rtol, atol=1e-6)
    assert all(loss.isfinite() and loss > 0 for loss in found['loss_nets_distill'])
    sandwich.step += 1
    assert nets[2:] != sandwich.nets()[2:]
    total(found).backward()
    without = [key for key, value in model.named_parameters() if value.grad is None]
    assert without == []
    model.eval()
    with torch.no_grad():  # an ordinary evaluation
        model(batch['inputs'], mode='tensor')


def test_distillation_can_be_left_out():
    cfg, model = supernet('mnv4_ssdlite_coco')
    batch = batch_of(model, None)
    cfg.supernet.distillation = 0
    train_supernet(model.train(), cfg.model.to_dict(), cfg.supernet, cfg.input_size, cfg.default_scope, seed=0)
    losses = model(**batch, mode='loss')
    assert losses.keys() == {'loss_cls', 'loss_bbox', 'loss_nets'}
    model.parse_losses(losses)[0].backward()


def test_a_copy_of_a_supernet_has_its_own_loss():
    """EMA makes one."""
    cfg, model = supernet('mnv4_ssdlite_coco')
    batch = batch_of(model, None)
    plain = copy.deepcopy(model)
    train_supernet(model, cfg.model.to_dict(), cfg.supernet, cfg.input_size, cfg.default_scope, seed=0)
    copied = copy.deepcopy(model).eval()
    for net in (copied, plain.eval()):
        net.load_state_dict({key: value / 2 for key, value in model.state_dict().items()})
    assert total(copied(**batch, mode='loss')) == total(plain(**batch, mode='loss'))


def is_strided(part):
    return isinstance(part, torch.nn.Conv2d) and part.groups == part.in_channels > 1 and part.stride[1] == 2


@pytest.mark.parametrize('name', [HEADS[0], HEADS[3]])
def test_a_step_in_mixed_precision(name, segmentation_batch):
    cfg, model = supernet(name)
    batch = batch_of(model, segmentation_batch)
    sandwich = train_supernet(
        model.train(), cfg.model.to_dict(), cfg.supernet, cfg.input_size, cfg.default_scope, seed=0
    )
    in_full = copy.deepcopy(model)
    with Bf16OptimWrapper(torch.optim.SGD(model.parameters(), 0.1)).optim_context(model):
        losses = model(**batch, mode='loss')
    total(losses).backward()
    torch.testing.assert_close(total(losses), total(in_full(**batch, mode='loss')), rtol=0.05, atol=0)
    assert all(value.grad is not None and value.grad.isfinite().all() for value in model.parameters())
    nets = [model, *(net for net, *_ in sandwich._built.values()), sandwich._build(sandwich.nets()[2])[0]]
    hooks = [[len(part._forward_pre_hooks) for part in net.modules() if is_strided(part)] for net in nets]
    assert all(set(counts) == {1} for counts in hooks)


def step_size(sandwich, step):
    """Return the number of the scale of the nets of a step."""
    sandwich.step = step
    return sandwich.nets()[0][-1]


def test_boxes_are_resized_with_their_image():
    """And the samples of the other nets stay as they are."""
    _, model = supernet('mnv4_ssdlite_coco')
    shapes = [[3, 64, 96], [3, 32, 96]]  # the second is padded to 64x96
    data = model.data_preprocessor(demo_mm_inputs(2, shapes, num_classes=80), training=True)
    inputs, samples = data['inputs'], data['data_samples']
    before = [sample.gt_instances.bboxes.clone() for sample in samples]
    images, scaled = scaled_batch(inputs, samples, 0.6)
    assert images.shape[2:] == (32, 64)
    for old, sample, new in zip(before, samples, scaled, strict=True):
        assert torch.equal(sample.gt_instances.bboxes, old)
        torch.testing.assert_close(new.gt_instances.bboxes, old * torch.tensor([2 / 3, 1 / 2, 2 / 3, 1 / 2]))
        assert torch.equal(new.gt_instances.labels, sample.gt_instances.labels)
        height, width = sample.pad_shape
        assert new.batch_input_shape == (32, 64)
        assert new.img_shape == new.pad_shape == (height // 2, 64)
        assert (width, tuple(sample.batch_input_shape)) == (96, (64, 96))
    assert [sample.pad_shape[0] for sample in samples] == [64, 32]
    same, untouched = scaled_batch(inputs, samples, 1.0)
    assert same is inputs
    assert untouched is samples


@pytest.mark.parametrize('name', ['mnv4_ssdlite_coco-mini', 'mnv4_retinanet_coco-mini'])
@pytest.mark.parametrize('coder', [{}, dict(target_means=[0.1, 0.2, 0.3, 0.4], target_stds=[0.1, 0.2, 0.3, 0.4]), None])
def test_boxes_of_all_input_sizes_have_the_codes_of_their_pixels(name, coder):
    cfg = load_config(name)
    config, size = cfg.model.to_dict(), cfg.input_size
    config['backbone'] |= dict(arch=arch_to_dict(SMALL.subnet(SMALL.largest()).arch))
    if coder is None:
        config['bbox_head'].pop('bbox_coder')
    else:
        config['bbox_head']['bbox_coder'] |= coder
    nets = [at_scale(SMALL.largest(), i) for i in range(len(SMALL.scales))]
    models = [subnet_model(config, SMALL, genes, size) for genes in nets]
    codes, sides = [], []
    with DefaultScope.overwrite_default_scope('mmdet'):
        for head in (model['bbox_head'] for model in models):
            anchors = torch.cat(TASK_UTILS.build(head['anchor_generator']).base_anchors).float()
            centre = ((anchors[:, :2] + anchors[:, 2:]) / 2).repeat(1, 2)
            boxes = centre + torch.tensor([-20.0, -30.0, 26.0, 33.0])
            built = TASK_UTILS.build(head.get('bbox_coder', ANCHOR_CODER))
            codes.append(built.encode(anchors, boxes))
            sides.append(anchors[0, 2] - anchors[0, 0])
            torch.testing.assert_close(built.decode(anchors, codes[-1]), boxes, rtol=0, atol=1e-2)
    assert len({float(side) for side in sides}) == len(SMALL.scales)
    plain = [subnet_model(config, SMALL, genes, size, codes_in_pixels=False) for genes in nets]
    assert all(model['bbox_head'].get('bbox_coder') == config['bbox_head'].get('bbox_coder') for model in plain)
    for code in codes:
        torch.testing.assert_close(code, codes[-1], rtol=0.01, atol=0.01)  # SSD's anchors have sizes to 0.1 pixels


def test_another_coder_with_anchors_is_refused():
    cfg = load_config('mnv4_retinanet_coco-mini')
    cfg.model.bbox_head.bbox_coder.type = 'TBLRBBoxCoder'
    with pytest.raises(UserError, match='need DeltaXYWHBBoxCoder with their anchors, not TBLRBBoxCoder'):
        check_supernet(set_supernet(cfg, TrainOptions(space='small')), TrainOptions(space='small'))


@pytest.mark.parametrize(('name', 'fits'), [(HEADS[0], False), (HEADS[2], True), (HEADS[3], True)])
def test_a_supernet_with_codes_relative_to_its_anchors_is_refused(name, fits):
    cfg = set_supernet(load_config(name), TrainOptions(space='small'))
    cfg.supernet.pop('box_codes')
    if fits:
        assert space_of(cfg) == SMALL
    else:
        with pytest.raises(UserError, match='was trained with other codes of boxes'):
            space_of(cfg)


def test_a_supernet_is_trained_and_resumed(drawn, tmp_path, capsys):
    """The weights of a resumed run are those of one that was not interrupted: the random nets are the same."""
    options = {**IN_PROCESS, 'train_dataloader.batch_size': 2, 'val_dataloader.dataset.indices': 2}
    options['default_hooks.checkpoint.interval'] = 2
    arguments = dict(data=str(drawn), space='small', iters=4, cfg_options=options)
    folder = train('mnv4_lraspp_ade20k-mini', work_dir=str(tmp_path / 'whole'), **arguments)
    assert 'about 20% of these images are held out from training' in capsys.readouterr().out
    last = read_checkpoint(folder / 'iter_4.pth')
    resumed = train(
        'mnv4_lraspp_ade20k-mini', work_dir=str(tmp_path / 'resumed'), resume=str(folder / 'iter_2.pth'), **arguments
    )
    again = read_checkpoint(resumed / 'iter_4.pth').content['state_dict']
    assert all(torch.equal(value, again[key]) for key, value in last.content['state_dict'].items())
    cfg = checkpoint_config(last)
    assert space_of(cfg) == SMALL
    assert cfg.model.backbone.arch.stages[3][-1] == ['UIB', 5, 5, 1, 4, 128]
    subnet = with_subnet(cfg, SMALL.smallest())
    assert 'supernet' not in subnet
    assert build_model(subnet).backbone.out_channels[-1] in (96, 960)
    with pytest.raises(UserError, match='not the checkpoint of a supernet'):
        space_of(subnet)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(space='large'), '--space must be small or medium'),
        (dict(space='small', backbone='mnv4_conv_m'), '--space and --backbone exclude each other: the backbone is'),
        (dict(space='small', teacher='a.pth'), '--space and --teacher exclude each other'),
        (dict(space='small', compiled=True), '--space and --compile exclude each other'),
        (dict(space='small', qat='a.pth'), '--space and --qat exclude each other'),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(UserError, match=message):
        TrainOptions(**options)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'model.backbone.arch': 'conv_s'}, 'must be the largest net of the space'),
        ({'supernet.random': -1}, 'supernet.random must be a number of nets, got -1'),
        ({'supernet.distillation': 'x'}, 'supernet.distillation must be a weight'),
        ({'train_dataloader.held_out': 1.5}, 'train_dataloader.held_out must be a share between 0 and 1, got 1.5'),
        ({'supernet.space': 'medium'}, "must be the largest net of the space 'medium'"),
        ({'supernet.space': 'huge'}, "no search space 'huge'"),
    ],
)
def test_settings_that_do_not_fit(options, message):
    with pytest.raises(UserError, match=message):
        training_config('mnv4_ssdlite_coco-mini', TrainOptions(space='small', cfg_options=options))


def test_options_do_not_fit_the_config_of_a_supernet_either():
    cfg = training_config('mnv4_ssdlite_coco-mini', TrainOptions(space='small'))
    with pytest.raises(UserError, match='--space and --compile exclude each other'):
        training_config(cfg, TrainOptions(compiled=True))


@pytest.mark.parametrize('indices', [None, 12, -12, [0, 3, 5, 7, 9, 11, 13, 15]])
def test_what_is_left_to_train_on(drawn, indices):
    """Without the images that are held out, of those that ``indices`` of the config selects."""
    cfg = training_config('mnv4_ssdlite_coco-mini', TrainOptions(data=str(drawn)))
    loader = cfg.train_dataloader.to_dict()
    innermost_dataset(loader['dataset'])['indices'] = indices
    with DefaultScope.overwrite_default_scope('mmdet'):
        every = image_names(innermost(prepare_loader(loader, 0)['dataset']))
        left = image_names(innermost(prepare_loader({**loader, 'held_out': 0.3}, 0)['dataset']))
    assert left == [name for name in every if not is_held_out(name, 0.3)]
    assert 0 < len(left) < len(every)


def test_another_backbone_is_refused():
    cfg = load_config('mnv4_ssdlite_coco')
    cfg.model.backbone.type = 'TimmFeatures'
    with pytest.raises(UserError, match='type MobileNetV4'):
        set_supernet(cfg, TrainOptions(space='small'))
