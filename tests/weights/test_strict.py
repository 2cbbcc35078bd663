"""timm's weights load strictly, and other weights are refused."""

import http.server
import threading
from functools import partial

import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.model import BaseModule
from safetensors.torch import save_file

from mnv4_mm.config.backbone import disagreeing_normalisation, with_backbone
from mnv4_mm.config.load import load_config
from mnv4_mm.errors import UserError
from mnv4_mm.models import MobileNetV4
from mnv4_mm.models.arch import TIMM_NAMES
from mnv4_mm.weights.strict import rows_by_class
from mnv4_mm.weights.tags import TAGS

TAG = 'mobilenetv4_conv_small.e2400_r224_in1k'


@pytest.fixture(scope='module')
def full():
    """State of timm's whole net, with the classifier, as in its files."""
    torch.manual_seed(0)
    return timm.create_model('mobilenetv4_conv_small').state_dict()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    (tmp_path / 'hub/checkpoints').mkdir(parents=True)
    return tmp_path / 'hub/checkpoints'


def initialised(checkpoint, arch='conv_s', out_indices=(1, 2, 3), **more):
    net = MobileNetV4(arch, out_indices, init_cfg=dict(type='Pretrained', checkpoint=str(checkpoint), **more))
    net.init_weights()
    return net


@pytest.mark.parametrize('arch', TIMM_NAMES)
def test_every_net_loads_its_whole_timm_state(arch, tmp_path):
    state = timm.create_model(TIMM_NAMES[arch]).state_dict()
    save_file(state, tmp_path / 'w.safetensors')
    net = initialised(tmp_path / 'w.safetensors', arch, (0, 1, 2, 3, 4))
    for key, value in net.state_dict().items():
        assert torch.equal(value, state[key]), key


@pytest.mark.parametrize('kind', ['safetensors', 'pth', 'tag'])
def test_files_and_tags(full, tmp_path, cache, kind):
    if kind == 'pth':
        torch.save(full, tmp_path / 'w.pth')
        source = tmp_path / 'w.pth'
    else:
        path = cache / f'{TAG}.safetensors' if kind == 'tag' else tmp_path / 'w.safetensors'
        save_file(full, path)
        source = f'timm://{TAG}' if kind == 'tag' else path
    net = initialised(source)
    assert torch.equal(net.conv_stem.weight, full['conv_stem.weight'])


def test_what_is_dropped_is_named(full, tmp_path, monkeypatch):
    torch.save(full, tmp_path / 'w.pth')
    lines = []
    monkeypatch.setattr('mnv4_mm.weights.strict.print_log', lambda text, logger: lines.append(text))
    initialised(tmp_path / 'w.pth', out_indices=(0, 1))
    assert lines == [f'{tmp_path}/w.pth: left out blocks.2, blocks.3, blocks.4, classifier, conv_head, norm_head']


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda s: s.pop('blocks.0.0.conv.weight'), r'1 missing \(blocks.0.0.conv.weight\)'),
        (lambda s: s.update(extra=torch.zeros(1)), r'1 unexpected \(extra\)'),
        (
            lambda s: s.update({'conv_stem.weight': torch.zeros(32, 1, 3, 3)}),
            r'of another shape \(conv_stem.weight \(32, 1, 3, 3\)',
        ),
    ],
)
def test_anything_else_is_an_error_that_lists_it(full, tmp_path, change, message):
    state = dict(full)
    change(state)
    save_file(state, tmp_path / 'w.safetensors')
    with pytest.raises(UserError, match=message):
        initialised(tmp_path / 'w.safetensors')


def test_another_net(full, tmp_path):
    torch.save(full, tmp_path / 'w.pth')
    with pytest.raises(UserError, match='does not fit MobileNetV4'):
        initialised(tmp_path / 'w.pth', 'conv_m')


def test_a_detectors_checkpoint_by_prefix(full, tmp_path):
    state = {f'backbone.{key}': value for key, value in MobileNetV4().state_dict().items()} | {'neck.w': torch.zeros(1)}
    torch.save(dict(state_dict=state), tmp_path / 'w.pth')
    net = initialised(tmp_path / 'w.pth', prefix='backbone')  # mmengine adds the dot too
    assert torch.equal(net.conv_stem.weight, state['backbone.conv_stem.weight'])
    with pytest.raises(UserError, match='begin with'):
        initialised(tmp_path / 'w.pth', prefix='student.')


def test_cut_files_and_code_are_refused(full, tmp_path, payload):
    save_file(full, tmp_path / 'w.safetensors')
    cut = tmp_path / 'cut.safetensors'
    cut.write_bytes((tmp_path / 'w.safetensors').read_bytes()[:100_000])
    with pytest.raises(UserError, match=r'cut\.safetensors is not a readable'):
        initialised(cut)
    torch.save(dict(full, extra=payload), tmp_path / 'evil.pth')
    with pytest.raises(UserError, match=r'evil\.pth is refused'):
        initialised(tmp_path / 'evil.pth')
    assert not (tmp_path / 'ran').exists()
    for missing in ('gone.pth', 'gone.safetensors'):
        with pytest.raises(UserError, match=r'no .*file at'):
            initialised(tmp_path / missing)


@pytest.mark.parametrize('scheme', ['{}', 'file', 'list', 'http'])
def test_mmengines_unsafe_fallback_is_off_wherever_the_backbone_is_used(full, tmp_path, payload, scheme):
    """mmengine unpickles anything if its safe attempt fails, but not for our backbone, in any program."""
    path = tmp_path / 'evil.pth'
    torch.save(dict(full, extra=payload), path)
    handler = partial(SilentHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        source = f'http://127.0.0.1:{server.server_port}/evil.pth' if scheme == 'http' else str(path)
        entry = dict(type='Pretrained', checkpoint=source)
        net = MobileNetV4(init_cfg=[entry] if scheme == 'list' else entry)
        try:
            with pytest.raises(UserError, match=r'evil\.pth is refused'):
                net.init_weights()
        finally:
            server.shutdown()
            thread.join()
    assert not (tmp_path / 'ran').exists()


class SilentHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        """Keep the output of the test clean."""


def test_a_list_of_initialisers(full, tmp_path):
    torch.save(full, tmp_path / 'w.pth')
    entries = [
        dict(type='Constant', layer='Conv2d', val=1.0),
        dict(type='Pretrained', checkpoint=str(tmp_path / 'w.pth')),
    ]
    net = MobileNetV4(init_cfg=entries)
    net.init_weights()
    assert torch.equal(net.conv_stem.weight, full['conv_stem.weight'])
    assert net.init_cfg == entries


def test_weights_of_a_net_with_the_same_keys(cache):
    """conv_m, conv_aa_m and conv_blur_m have the same keys and shapes and are different nets."""
    tag = 'mobilenetv4_conv_blur_medium.e500_r224_in1k'
    save_file(timm.create_model('mobilenetv4_conv_blur_medium').state_dict(), cache / f'{tag}.safetensors')
    initialised(f'timm://{tag}', 'conv_blur_m')
    for source in (f'timm://{tag}', cache / f'{tag}.safetensors'):
        with pytest.raises(UserError, match='holds weights of conv_blur_m, and this net is conv_m'):
            initialised(source, 'conv_m')


@pytest.mark.parametrize('content', [[1], {}, dict(state_dict=[1]), dict(state_dict={1: torch.zeros(1)}), dict(a=1)])
def test_files_without_weights(tmp_path, content):
    torch.save(content, tmp_path / 'w.pth')
    with pytest.raises(UserError, match=r'w\.pth'):
        initialised(tmp_path / 'w.pth')


def test_no_network_says_what_to_fetch_and_where_to_put_it(cache, monkeypatch):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    monkeypatch.setenv('HF_HUB_CACHE', str(cache / 'hf'))
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    with pytest.raises(UserError) as error:
        initialised(f'timm://{TAG}')
    assert f'https://huggingface.co/timm/{TAG}/resolve/main/model.safetensors' in str(error.value)
    assert f'{cache}/{TAG}.safetensors' in str(error.value)


class Stem(BaseModule):
    """A model that is not ours, with a layer of timm's name."""

    def __init__(self, source):
        super().__init__(dict(type='Pretrained', checkpoint=source))
        self.conv_stem = torch.nn.Conv2d(3, 32, 3, bias=False)


@pytest.mark.parametrize('scheme', ['timm://{tag}', 'tensors://{cache}/{tag}.safetensors'])
def test_any_openmmlab_model_takes_our_schemes(full, cache, scheme):
    save_file(full, cache / f'{TAG}.safetensors')
    net = Stem(scheme.format(tag=TAG, cache=cache))
    net.init_weights()
    assert torch.equal(net.conv_stem.weight, full['conv_stem.weight'])


def test_an_unknown_tag_lists_near_ones():
    with pytest.raises(UserError, match=TAG):
        initialised('timm://mobilenetv4_conv_small.e2400_r256_in1k')


def test_tags_are_timms():
    for name, tag in TAGS.items():
        cfg = timm.get_pretrained_cfg(name, allow_unregistered=False)
        assert TIMM_NAMES[tag.arch] == name.split('.')[0]
        assert cfg.input_size == (3, tag.size, tag.size)
        mean, std = tag.normalisation
        assert [m / 255 for m in mean] == pytest.approx(cfg.mean, abs=1e-5)
        assert [s / 255 for s in std] == pytest.approx(cfg.std, abs=1e-5)
        assert (tag.top1 is None) == (cfg.num_classes != 1000)
    published = {f'{name}' for name in timm.list_pretrained('mobilenetv4*')}
    assert published == set(TAGS)


@pytest.mark.parametrize('checkpoint', ['timm://{}', 'somewhere/{}.safetensors'])
def test_a_preprocessor_that_disagrees_with_the_weights_is_reported(checkpoint):
    cfg = load_config('mnv4_ssdlite_coco')
    assert disagreeing_normalisation(cfg) is None
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=checkpoint.format(TAG))
    assert disagreeing_normalisation(cfg) is None
    cfg.model.data_preprocessor.bgr_to_rgb = False
    assert 'bgr_to_rgb=False' in disagreeing_normalisation(cfg)
    cfg.model.data_preprocessor.bgr_to_rgb = True
    half = 'mobilenetv4_conv_small.e3600_r256_in1k'
    cfg.model.backbone.init_cfg.checkpoint = checkpoint.format(half)
    assert 'mean=[127.5, 127.5, 127.5]' in disagreeing_normalisation(cfg)


@pytest.mark.parametrize(
    ('name', 'mean'), [('mobilevit_s', '[0.0, 0.0, 0.0]'), ('mobilenetv1_100', '[127.5, 127.5, 127.5]')]
)
def test_a_preprocessor_that_disagrees_with_a_peers_weights_is_reported(name, mean):
    cfg = with_backbone(load_config('mnv4_retinanet-1x_coco'), f'timm:{name}')
    assert f'mean={mean}' in disagreeing_normalisation(cfg)
    assert disagreeing_normalisation(with_backbone(load_config('mnv4_retinanet-1x_coco'), 'timm:resnet50')) is None


def test_models_without_a_backbone_have_nothing_to_disagree_with():
    assert disagreeing_normalisation(Config(dict(model=dict(type='SemiBaseDetector', detector={})))) is None


@pytest.mark.parametrize('background', [0, 1])
@pytest.mark.parametrize('anchors', [1, 3])
def test_rows_of_the_same_class_are_taken_over_by_name(background, anchors):
    """Fine-tuning: of a head's convolution, of which each anchor has rows of all classes."""
    old, new = ['a', 'b', 'c', 'd'], ['c', 'x', 'a']

    def head(classes, value):
        rows = [[f'{k}{name}' for name in [*classes, *['bg'] * background]] for k in range(anchors)]
        codes = [float(sum(map(ord, text))) for row in rows for text in row]
        return dict(
            cls=torch.tensor(codes)[:, None, None].expand(-1, 2, 2) + value, body=torch.full((5,), float(value))
        )

    model, wider = head(new, 1000), head([*new, 'more'], 0)
    fitted = rows_by_class(head(old, 0), model, wider, old, new)
    expected, random = head(new, 0)['cls'], model['cls']
    per_anchor = len(new) + background
    for row in range(anchors * per_anchor):
        is_new = row % per_anchor == new.index('x')
        assert torch.equal(fitted['cls'][row], (random if is_new else expected)[row]), row
    assert torch.equal(fitted['body'], torch.zeros(5))
    # The same number of other classes is not taken over by position.
    assert torch.equal(
        rows_by_class(head(['p', 'q', 'r'], 0), model, wider, ['p', 'q', 'r'], new)['cls'][:3], random[:3]
    )
    # What cannot be divided among the classes is left out.
    assert 'cls' not in rows_by_class(dict(cls=torch.zeros(7, 2, 2)), model, wider, old, new)
