"""Memory format, fused optimisers and compilation take effect and keep results. Speed: `make bench`."""

import functools
import re

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from torch import nn
from training_step import DETECTORS, SEGMENTERS, Step

from mnv4_mm.config.load import load_config, with_options
from mnv4_mm.config.optimizer import with_precision
from mnv4_mm.config.options import TrainOptions
from mnv4_mm.config.training import training_config
from mnv4_mm.engine.runner import SafeRunner
from mnv4_mm.engine.step import CompileHook, compile_parts, use_channels_last
from mnv4_mm.errors import UserError
from mnv4_mm.models import MobileNetV4, TimmFeatures
from mnv4_mm.models.arch import ARCHS

AFFECTED_ONEDNN = (3, 12, 0)  # the newest version known to have issue 6035


def close(a, b, tolerance):
    return a == pytest.approx(b, rel=tolerance, abs=1e-6)


@pytest.mark.parametrize('name', DETECTORS + SEGMENTERS)
def test_channels_last_lays_out_the_whole_net_and_computes_the_same(name, segmentation_batch):
    plain, ours = Step(name, segmentation_batch), Step(name, segmentation_batch)
    use_channels_last(ours.model)
    maps = []
    ours.model.backbone.register_forward_hook(lambda _, __, out: maps.extend(out))
    first = (ours(), plain())
    assert close(*first, 1e-4)
    for x in maps:
        assert x.is_contiguous(memory_format=torch.channels_last)
    for key, weight in ours.model.state_dict().items():
        assert weight.ndim != 4 or weight.is_contiguous(memory_format=torch.channels_last), key
    assert close(ours(), plain(), 1e-2)  # the gradients of the first step were summed in another order
    # A fused optimiser requires weight and gradient to have the same strides.
    ours.optimizer.optimizer.zero_grad = lambda: None
    ours()
    for key, parameter in ours.model.named_parameters():
        assert parameter.grad.stride() == parameter.stride(), key


@pytest.mark.parametrize('arch', ARCHS)
def test_channels_last_is_safe_for_every_mobilenetv4(arch):
    model = nn.Sequential()
    model.backbone = MobileNetV4(arch)
    assert use_channels_last(model)


def test_layers_affected_by_onednn_6035_keep_their_layout():
    """uxlfoundation/oneDNN#6035: FastViT's backward pass aborts, with torch 2.14.1 on AVX-512."""
    model = nn.Sequential()
    model.backbone = TimmFeatures('fastvit_t8')
    before = {key: value.stride() for key, value in model.state_dict().items()}
    assert not use_channels_last(model)
    assert {key: value.stride() for key, value in model.state_dict().items()} == before


def test_torch_has_a_onednn_with_issue_6035():
    """When this fails, torch ships a newer oneDNN: if its issue 6035 is fixed, remove `_corrupts_memory`."""
    onednn = re.search(r'(?:MKL-DNN|oneDNN) v([0-9.]+)', torch.__config__.show())
    assert onednn is None or tuple(map(int, onednn.group(1).split('.'))) <= AFFECTED_ONEDNN


@pytest.mark.parametrize('backbone', ['mnv4_hybrid_m', 'timm:repvit_m0_9', 'timm:mobilenetv3_large_100'])
def test_channels_last_suits_attention_and_peers(backbone, segmentation_batch):
    plain, ours = (Step('mnv4_fpn_ade20k', segmentation_batch, backbone) for _ in range(2))
    assert use_channels_last(ours.model)
    assert close(ours(), plain(), 1e-4)


@pytest.mark.parametrize('name', ['mnv4_ssdlite_coco', 'mnv4_rtmdet_coco'])  # SGD and AdamW
def test_a_fused_optimiser_makes_the_same_step(name, segmentation_batch):
    plain, ours = Step(name, segmentation_batch, fused=False), Step(name, segmentation_batch, fused=True)
    assert ours.optimizer.optimizer.param_groups[0]['fused']
    for _ in range(3):
        for a, b in zip(ours.model.parameters(), plain.model.parameters(), strict=True):
            a.grad = torch.randn(a.shape)
            b.grad = a.grad.clone()
        ours.optimizer.step(), plain.optimizer.step()
    for key, weight in ours.weights().items():
        torch.testing.assert_close(weight, plain.weights()[key], rtol=1e-5, atol=1e-7, msg=key)


# `inductor` runs a C++ compiler for minutes; `aot_eager` traces, differentiates and guards the same, without compiling.
@pytest.mark.parametrize('backend', ['aot_eager', pytest.param('inductor', marks=pytest.mark.long)])
@pytest.mark.parametrize('name', ['mnv4_ssdlite_coco', 'mnv4_lraspp_ade20k'])
@pytest.mark.filterwarnings('ignore')  # of the compiler
def test_a_compiled_net_computes_the_same_and_keeps_its_names(name, backend, segmentation_batch, monkeypatch):
    monkeypatch.setattr(torch, 'compile', functools.partial(torch.compile, backend=backend))
    plain, ours = Step(name, segmentation_batch), Step(name, segmentation_batch)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compile_parts(ours.model)
    assert close(ours(), plain(), 1e-3)
    frames = torch._dynamo.utils.counters['frames']['ok']
    assert frames >= 2  # backbone and head
    assert ours.model.state_dict().keys() == plain.model.state_dict().keys()
    ours()
    assert torch._dynamo.utils.counters['frames']['ok'] == frames  # not compiled again
    # Validation, whose images have many sizes, is not compiled.
    ours.model.eval()
    with torch.no_grad():
        for size in (96, 64):
            ours.model(torch.rand(1, 3, size, size), mode='tensor')
    assert torch._dynamo.utils.counters['frames']['ok'] == frames


@pytest.mark.parametrize('name', ['mnv4_ssdlite_coco-mini', 'mnv4_rtmdet_coco-mini'])  # SGD and AdamW
@pytest.mark.parametrize('before', [dict(channels_last=False, fused=False), dict(channels_last=True, fused=True)])
def test_a_resumed_optimiser_goes_on_in_another_layout(name, before, repository, tmp_path):
    """Momentum takes the layout of its weight; the options are those of this run, not of the checkpoint."""
    after = {key: not value for key, value in before.items()}
    first = runner_before_training(name, tmp_path / 'a', **before)
    set_random_gradients(first, 0)
    first.optim_wrapper.step()
    first.save_checkpoint(str(tmp_path), 'x.pth')
    resumed = runner_before_training(name, tmp_path / 'b', resume=str(tmp_path / 'x.pth'), **after)
    assert {bool(group['fused']) for group in resumed.optim_wrapper.optimizer.param_groups} == {after['fused']}
    for one in (first, resumed):
        set_random_gradients(one, 1)
        one.optim_wrapper.step()
    for a, b in zip(first.model.parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def runner_before_training(name, work_dir, **settings):
    """Return a runner that is about to train."""
    cfg = training_config(name, TrainOptions(work_dir=str(work_dir), **settings))
    cfg.experiment_name = str(work_dir)
    cfg.custom_hooks = []
    built = SafeRunner.from_cfg(cfg)
    built._train_loop = built.build_train_loop(built._train_loop)
    built.optim_wrapper = built.build_optim_wrapper(built.optim_wrapper)
    built.param_schedulers = built.build_param_scheduler(built.param_schedulers)
    built.load_or_resume()
    return built


def set_random_gradients(runner, seed):
    torch.manual_seed(seed)
    for parameter in runner.model.parameters():
        parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape))  # as autograd lays it out


def runner(repository, tmp_path, **settings):
    cfg = training_config('mnv4_ssdlite_coco-mini', TrainOptions(work_dir=str(tmp_path / 'w'), **settings))
    # mmengine names a runner after the second, and refuses two of the same name.
    cfg.experiment_name = f'{tmp_path}{settings}'
    return SafeRunner.from_cfg(cfg)


def test_the_runner_applies_the_config(repository, tmp_path):
    def laid_out(model):
        return model.backbone.conv_stem.weight.is_contiguous(memory_format=torch.channels_last)

    assert laid_out(runner(repository, tmp_path).model)
    assert not laid_out(runner(repository, tmp_path, channels_last=False).model)
    with_it = runner(repository, tmp_path, compiled=True)
    assert any(isinstance(hook, CompileHook) for hook in with_it.hooks)


def test_the_optimiser_is_fused_where_it_can_be():
    def optimizer(name='mnv4_ssdlite_coco', **settings):
        return training_config(name, TrainOptions(**settings)).optim_wrapper.optimizer

    assert all(optimizer(name).fused for name in DETECTORS + SEGMENTERS)
    assert not optimizer(fused=False).fused
    assert not optimizer(cfg_options={'optim_wrapper.optimizer.fused': False}).fused
    assert 'fused' not in optimizer(cfg_options={'optim_wrapper.optimizer.type': 'RMSprop'})
    assert 'fused' not in optimizer(cfg_options={'optim_wrapper.optimizer.foreach': True})
    with pytest.raises(UserError, match='--fused: RMSprop has no fused form'):
        optimizer(fused=True, cfg_options={'optim_wrapper.optimizer.type': 'RMSprop'})


def test_precision_is_chosen_or_refused():
    def wrapper(on_gpu=False, **settings):
        return training_config('mnv4_ssdlite_coco', TrainOptions(**settings), on_gpu=on_gpu).optim_wrapper

    assert wrapper().type == 'OptimWrapper'
    assert wrapper(amp_dtype='bf16').type == wrapper(amp_dtype='bf16', on_gpu=True).type == 'Bf16OptimWrapper'
    assert wrapper(amp=True, amp_dtype='fp16', on_gpu=True).type == 'AmpOptimWrapper'
    had = {'optim_wrapper.type': 'AmpOptimWrapper', 'optim_wrapper.dtype': 'bfloat16'}
    cfg = with_options(load_config('mnv4_ssdlite_coco'), had)
    assert with_precision(cfg, 'fp16', on_gpu=True).optim_wrapper.dtype == 'float16'
    build_optim_wrapper(nn.Linear(1, 1), with_precision(cfg, 'bf16', on_gpu=False).optim_wrapper)
    with pytest.raises(UserError, match='fp16 needs a GPU'):
        wrapper(amp_dtype='fp16')
    with pytest.raises(UserError, match='must be fp16 or bf16'):
        wrapper(amp_dtype='fp8')


def test_bf16_stays_within_its_precision(segmentation_batch):
    """Losses differ by the 8 bits of bfloat16, not by more."""
    with DefaultScope.overwrite_default_scope('mmseg'):
        plain, ours = (Step('mnv4_lraspp_ade20k', segmentation_batch) for _ in range(2))
        ours.optimizer = build_optim_wrapper(
            ours.model, dict(type='Bf16OptimWrapper', optimizer=dict(type='SGD', lr=0.01))
        )
        seen = []
        ours.model.backbone.register_forward_hook(lambda _, __, out: seen.extend(x.dtype for x in out))
        losses = ours(), plain()
    assert set(seen) == {torch.bfloat16}
    assert losses[0]['loss'] == pytest.approx(losses[1]['loss'], rel=2e-2)
