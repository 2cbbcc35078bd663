import copy
import dataclasses

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmdet.apis import inference_detector
from mmdet.models.dense_heads import FoveaHead
from mmengine.registry import DefaultScope
from torch import nn

from mnv4_mm.apis.model import load_model
from mnv4_mm.deploy.describe import describe
from mnv4_mm.deploy.graph import _store_rounded, build_graph, fold_scales, reference
from mnv4_mm.deploy.rounding import RoundedConvolution
from mnv4_mm.deploy.targets import TARGETS
from mnv4_mm.errors import UserError
from mnv4_mm.models.layers import MultiQueryAttention
from mnv4_mm.runtime.results import select
from mnv4_mm.tasks.predictors import Segmenter

ONNX = TARGETS['onnx']
DETECTORS = ('mnv4_ssdlite_coco', 'mnv4_ssdlite_bccd', 'mnv4_retinanet_coco', 'mnv4_rtmdet_coco')
SEGMENTERS = ('mnv4_lraspp_ade20k', 'mnv4_fpn_ade20k', 'mnv4_deeplabv3plus_ade20k', 'mnv4_segformer_ade20k')
aten = torch.ops.aten


@pytest.fixture(scope='module')
def model_of(make_checkpoint):
    made = {}

    def model(name, backbone='mnv4_conv_s'):
        if (name, backbone) not in made:
            made[name, backbone] = load_model(str(make_checkpoint(name, backbone)), device='cpu')
        return made[name, backbone]

    return model


@pytest.mark.parametrize('name', DETECTORS)
def test_detections_are_those_of_mmdet(name, model_of, photos):
    """The whole way of an image: preprocessing, net, decoding, selection, and back to pixels of the image."""
    model = model_of(name)
    predictor = reference(model, describe(model, ONNX))
    for photo in photos[:3]:
        image = cv2.imread(str(photo))
        with DefaultScope.overwrite_default_scope('mmdet'):
            expected = inference_detector(model, image).pred_instances.numpy()
        found = predictor(image)
        count = min(len(found.scores), len(expected.scores))
        assert count > 20
        assert len(np.unique(expected.scores)) > 0.9 * count
        assert abs(len(found.scores) - len(expected.scores)) <= 1  # one score may be at the threshold
        np.testing.assert_allclose(found.scores[:count], expected.scores[:count], atol=5e-4)
        # Detections with nearly equal scores may be in another order.
        same = found.labels[:count] == expected.labels[:count]
        assert same.mean() > 0.9
        gap = np.abs(found.boxes[:count] - expected.bboxes[:count]).max(axis=1)[same]
        assert np.median(gap) < 1e-2
        assert (gap < 0.1).mean() > 0.9


@pytest.mark.parametrize('name', SEGMENTERS)
def test_class_maps_are_those_of_mmseg(name, model_of, photos):
    """For images of the size of the input, for which mmseg enlarges logits no further than the graph does."""
    model = model_of(name)
    model.cfg = copy.deepcopy(model.cfg)
    model.cfg.test_dataloader.dataset.pipeline[1].scale = (128, 128)
    predictor = reference(model, describe(model, ONNX, size=(128, 128)))
    segmenter = Segmenter(model)
    for photo in photos[:2]:
        image = cv2.resize(cv2.imread(str(photo)), (128, 128))
        expected = segmenter(image).class_map
        found = predictor(image).class_map
        assert len(np.unique(expected)) > 3
        assert (found != expected).mean() < 1e-3


@pytest.mark.parametrize(
    ('name', 'means'), [*((name, (0, 0, 0, 0)) for name in DETECTORS), (DETECTORS[0], (0.1, 0.2, 0.3, 0.4))]
)
def test_boxes_are_those_of_the_coder(name, means, model_of):
    """Against mmdet's own decoding, with boxes beyond the edge and extreme codes.

    The nets of a search space have coders with means.
    """
    model = model_of(name)
    if any(means):
        model = copy.deepcopy(model)
        model.bbox_head.bbox_coder.means = means
    height, width = {'mnv4_ssdlite_coco': (320, 320), 'mnv4_ssdlite_bccd': (256, 320)}.get(name, (128, 160))
    graph = build_graph(model, describe(model, ONNX, size=(height, width), normalise=True))
    head, net = model.bbox_head, graph.module
    rng = torch.Generator().manual_seed(0)
    codes = 20 * torch.randn((1, len(net.priors), 4), generator=rng)
    codes = codes.abs() if name == 'mnv4_rtmdet_coco' else codes
    expected = head.bbox_coder.decode(net.priors, codes[0], max_shape=(height, width))
    torch.testing.assert_close(net._decode(net.priors, codes, height, width)[0], expected, rtol=1e-5, atol=1e-3)
    assert (expected[:, 2:] == torch.tensor([width, height])).any()


@pytest.mark.parametrize(
    ('name', 'backbone', 'size'),
    [
        ('mnv4_ssdlite_coco', 'mnv4_hybrid_m', (320, 320)),
        ('mnv4_retinanet_coco', 'mnv4_conv_s', (96, 128)),
        pytest.param('mnv4_rtmdet_coco', 'mnv4_conv_aa_m', (96, 128), marks=pytest.mark.long),
        ('mnv4_deeplabv3plus_ade20k', 'mnv4_hybrid_m', (96, 128)),
        ('mnv4_fpn_ade20k', 'timm:fastvit_t8', (96, 128)),
    ],
)
def test_folding_norms_and_layer_scales_does_not_change_outputs(name, backbone, size, model_of):
    model = model_of(name, backbone)
    graph = build_graph(model, describe(model, ONNX, size=size))
    image = graph.example()
    with torch.no_grad():
        expected = graph.module(image)
    program = graph.program()
    for a, b in zip(program.module()(image), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-3 * float(b.abs().max()))
    targets = [node.target for node in program.graph.nodes]
    left = sum(target is aten.batch_norm.default for target in targets)
    # The only norm without a convolution before it is the first one of each attention block.
    attention = sum(isinstance(module, MultiQueryAttention) for module in model.modules())
    if backbone.startswith('timm:'):  # layers are in another order
        assert left < sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) / 2
    else:
        assert left == attention
        assert not [name for name in program.state_dict if name.endswith('gamma')]
    assert aten.scaled_dot_product_attention.default not in targets
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())  # the model itself is not changed


class Scaled(nn.Module):
    """Convolutions, each with a factor per channel behind it."""

    def __init__(self):
        super().__init__()
        self.plain, self.biased, self.shared, self.read = (nn.Conv2d(4, 4, 1, bias=i > 0) for i in range(4))
        self.flat, self.wide = nn.Parameter(torch.rand(4)), nn.Parameter(torch.rand(4, 1, 1))
        # No factors per channel.
        self.rows, self.two = nn.Parameter(torch.rand(1, 1, 5, 1)), nn.Parameter(torch.rand(2, 4, 1, 1))

    def forward(self, x):
        x = nn.functional.dropout(self.plain(x), training=self.training) * self.flat.view(1, -1, 1, 1)
        x = self.wide * self.biased(x)
        x = self.shared(self.shared(x) * self.flat.reshape(-1, 1, 1) * self.wide) * self.wide
        x = self.read(x)
        computed = nn.functional.conv2d(x, self.plain.weight, 2 * self.flat) * self.wide
        by_number = self.plain(x) * 2.0
        by_number *= self.wide
        return x * self.wide + x, self.plain(x) * self.rows, by_number, computed, self.plain(x) * self.two


def test_scales_are_folded_where_nothing_else_reads_the_convolution():
    x = torch.rand(2, 4, 5, 5)
    net = Scaled().eval()
    module = torch.export.export(net, (x,)).module()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.no_grad():
        fold_scales(module)
        for found, expected in zip(module(x), net(x), strict=True):
            torch.testing.assert_close(found, expected)
    products = [node for node in module.graph.nodes if node.target in (aten.mul.Tensor, aten.mul_.Tensor)]
    assert len(products) == 5  # of `read`, by rows, by two, and `computed` with its bias
    for name, value in net.state_dict().items():  # the model itself is not changed
        assert torch.equal(value, before[name])


class SharedBias(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide, self.centre = nn.Parameter(torch.ones(2, 3, 3, 3)), nn.Parameter(torch.ones(2, 3, 1, 1))
        self.bias = nn.Parameter(torch.ones(2))

    def forward(self, x):
        return torch.conv2d(x, self.wide, self.bias), torch.conv2d(x, self.centre, self.bias)


def test_a_bias_that_two_convolutions_share_is_shifted_once():
    """As of a level of 1x1 positions, whose kernel is cropped."""
    net = SharedBias().requires_grad_(False)
    module = torch.export.export(net, (torch.zeros(1, 3, 4, 4),)).module()
    rounded = [
        RoundedConvolution('wide', np.full((2, 3, 3, 3), 2, np.float32), np.array([1, 2], np.float32)),
        RoundedConvolution('centre', np.full((2, 3, 1, 1), 3, np.float32), np.array([10, 20], np.float32)),
    ]
    _store_rounded(module, rounded)
    assert module.bias.tolist() == [2, 3]
    assert float(module.wide.min()) == 2
    assert float(module.centre.min()) == 3


def test_shared_convolutions_are_folded_with_the_norm_of_each_level(model_of):
    """Folding module by module would fold the norm of the first level into all levels."""
    model = model_of('mnv4_rtmdet_coco')
    convolutions = [level[0].conv for level in model.bbox_head.cls_convs]
    assert len(set(convolutions)) == 1
    graph = build_graph(model, describe(model, ONNX, size=(96, 96)))
    assert not [node for node in graph.program().graph.nodes if node.target is aten.batch_norm.default]


def test_pixels_are_normalised_inside_or_outside(model_of):
    model = model_of('mnv4_ssdlite_coco')
    inside, outside = (build_graph(model, describe(model, ONNX, normalise=given)) for given in (False, True))
    pixels = inside.example()
    info = model.cfg.model.data_preprocessor
    mean, std = (torch.tensor(info[key]).view(3, 1, 1) for key in ('mean', 'std'))
    with torch.no_grad():
        a, b = inside.module(pixels), outside.module((pixels.permute(0, 3, 1, 2) - mean) / std)
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize('name', ['mnv4_rtmdet_coco', 'mnv4_segformer_ade20k', 'mnv4_fpn_ade20k'])
def test_a_graph_of_any_size(name, model_of):
    model = model_of(name)
    meta = describe(model, ONNX, dynamic=True)
    program = build_graph(model, meta).program().module()
    for size in ((96, 128), (160, 64)):
        fixed = build_graph(model, dataclasses.replace(meta, input=dataclasses.replace(meta.input, size=size)))
        image = fixed.example()
        with torch.no_grad():
            for a, b in zip(program(image), fixed.module(image), strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=2e-3 * float(b.abs().max()))


@pytest.mark.parametrize(
    ('name', 'change', 'message'),
    [
        ('mnv4_ssdlite_coco', dict(dynamic=True), 'stretches every image'),
        ('mnv4_rtmdet_coco', dict(size=(100, 320)), 'multiples of 32'),
        ('mnv4_rtmdet_coco', dict(size=(320,)), 'height and width'),
        ('mnv4_rtmdet_coco', dict(size=(320, 320), dynamic=True), 'exclude each other'),
        ('mnv4_ssdlite_coco', dict(size=(512, 512)), 'anchors are made for one size, here height 320 and width 320'),
        ('mnv4_rtmdet_coco', dict(kind='logits'), '--logits does not fit detection in onnx, which has nms, raw'),
        ('mnv4_lraspp_ade20k', dict(kind='nms'), '--nms does not fit segmentation'),
    ],
)
def test_options_that_do_not_fit_are_one_line(name, change, message, model_of):
    with pytest.raises(UserError, match=message):
        describe(model_of(name), ONNX, **change)


def test_unsupported_models_are_refused(model_of):
    model = copy.deepcopy(model_of('mnv4_ssdlite_coco'))
    meta = describe(model, ONNX)
    model.bbox_head.bbox_coder.add_ctr_clamp = True
    with pytest.raises(UserError, match='add_ctr_clamp'):
        build_graph(model, meta)
    model.bbox_head.bbox_coder = object()
    with pytest.raises(UserError, match='boxes of object are not exported'):
        build_graph(model, meta)
    with DefaultScope.overwrite_default_scope('mmdet'):
        # Two outputs a level and distances as codes, as in RTMDet, but decoded differently.
        model.bbox_head = FoveaHead(2, 8)
    with pytest.raises(UserError, match='the head FoveaHead cannot be exported: only SSDHead'):
        describe(model, ONNX)
    with pytest.raises(UserError, match='a ReLU cannot be exported'):
        describe(nn.ReLU(), ONNX)


def test_settings_that_a_file_would_ignore_are_refused(model_of):
    def changed(name, **steps):
        model = copy.deepcopy(model_of(name))
        for step in model.cfg.test_dataloader.dataset.pipeline:
            step.update(steps.get(step['type'], {}))
        return model

    odd = changed('mnv4_ssdlite_coco', Resize=dict(scale=(300, 300)))
    message = r'every image to height 300 and width 300; files take multiples of 32: train for another size$'
    with pytest.raises(UserError, match=message):
        describe(odd, ONNX)
    with pytest.raises(UserError, match='anchors are made for one size, here height 300 and width 300'):
        describe(odd, ONNX, size=(320, 320))
    with pytest.raises(UserError, match='resizes images to 640x640 and pads them to 672x672'):
        describe(changed('mnv4_rtmdet_coco', Pad=dict(size=(672, 672))), ONNX)
    odd.cfg.test_dataloader.dataset.pipeline.insert(2, dict(type='Pad', size=(320, 320)))
    with pytest.raises(UserError, match='resizes images to 300x300 and pads them to 320x320'):
        describe(odd, ONNX)
    model = changed('mnv4_ssdlite_coco')
    model.bbox_head.test_cfg.max_per_img = -1
    with pytest.raises(UserError, match='max_per_img of this config is -1'):
        describe(model, ONNX)
    model.bbox_head.test_cfg.max_per_img = 100
    model.bbox_head.test_cfg.nms.type = 'soft_nms'
    with pytest.raises(UserError, match='soft_nms'):
        describe(model, ONNX)


@pytest.mark.parametrize(
    ('pad', 'colour'),
    [
        (dict(type='Pad', size=(640, 640)), (0, 0, 0)),
        (dict(type='Pad', pad_to_square=True, pad_val=114), (114, 114, 114)),
        (dict(type='Pad', size_divisor=32, pad_val=dict(img=(1, 2, 3))), (3, 2, 1)),  # BGR, the file takes RGB
        (dict(type='PackDetInputs'), (124, 116, 104)),  # no Pad: the preprocessor pads after normalising
    ],
)
def test_the_padding_is_that_of_the_config(pad, colour, model_of):
    model = copy.deepcopy(model_of('mnv4_rtmdet_coco'))
    pipeline = model.cfg.test_dataloader.dataset.pipeline
    at = next(i for i, step in enumerate(pipeline) if step['type'] == 'Pad')
    model.cfg.test_dataloader.dataset.pipeline = [*pipeline[:at], pad, *pipeline[at + 1 :]]
    assert describe(model, ONNX).resize.pad == colour


def test_candidates_can_be_unlimited(model_of):
    model = copy.deepcopy(model_of('mnv4_ssdlite_coco'))
    model.bbox_head.test_cfg.nms_pre = -1
    selection = describe(model, ONNX).selection
    boxes, scores = np.float32([[0, 0, 9, 9], [20, 20, 29, 29]]), np.float32([[0.9], [0.8]])
    assert len(select(boxes, scores, selection).scores) == 2


def test_attention_by_products_equals_fused_attention(model_of):
    model = copy.deepcopy(model_of('mnv4_ssdlite_coco', 'mnv4_hybrid_m'))
    image = torch.randn((1, 3, 160, 160), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.backbone(image)
        for module in model.modules():
            if isinstance(module, MultiQueryAttention):
                assert module.attend is F.scaled_dot_product_attention
        build_graph(model, describe(model, ONNX))  # which works on a copy
        found = model.backbone(image)
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(('name', 'kind'), [('mnv4_ssdlite_coco', 'raw'), ('mnv4_lraspp_ade20k', 'logits')])
def test_equalising_changes_neither_the_outputs_nor_the_graph(name, kind, model_of):
    """LR-ASPP has convolutions without norms, whose weights an exported program shares with the model."""
    model = model_of(name)
    graph = build_graph(model, describe(model, ONNX, kind=kind, precision='int8'))
    before = {key: value.clone() for key, value in graph.module.state_dict().items()}
    image = graph.example()
    with torch.no_grad():
        expected = graph.program().module()(image)
        for _ in range(2):
            found = graph.program([image.numpy()]).module()(image)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert all(torch.equal(value, before[key]) for key, value in graph.module.state_dict().items())
