"""Knowledge distillation: a student is trained to imitate the feature maps and class scores of a trained teacher.

The student's class, parameter names and config stay as they are. The student gets a child module, ``Distiller``, with
the projectors: 1x1 convolutions that map its feature maps to the widths of the teacher's. The optimiser, gradient
clipping and distributed training therefore treat the projectors like all other parameters. Forward hooks on the student
take its feature maps and add the losses. ``state_dict`` of the student leaves the child module out.
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS, MODELS, DefaultScope
from mmengine.runner import Runner
from mmengine.runner.checkpoint import weights_to_cpu
from torch import Tensor, nn
from torch.nn import functional as F

from mnv4_mm.engine.step import use_channels_last
from mnv4_mm.errors import UserError
from mnv4_mm.upstream import converts_channels
from mnv4_mm.weights.checkpoint import read_checkpoint
from mnv4_mm.weights.strict import load_into

# Attribute of the student, key of the config, and key of the checkpoints that can be resumed.
NAME = 'distillation'
# Settings that the losses depend on, besides the teacher.
SETTINGS = ('loss', 'weight', 'temperature', 'logits_weight')
PROBE_SIZE = 512  # pixels; SSDLite's coarsest feature map then has 1x1 pixels


def channel_wise_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Return the loss of channel-wise distillation (arXiv 2011.13256, equation 4).

    A softmax over the positions turns each channel into a distribution. The loss is the Kullback-Leibler divergence
    KL(teacher || student) times the square of the temperature, averaged over channels and images.

    Args:
        student: Feature map or logits of the student, (N, C, H, W).
        teacher: Feature map or logits of the teacher, of the same shape.
        temperature: Divisor of both before the softmax.
    """
    ours, theirs = ((x.float() / temperature).flatten(2).log_softmax(-1) for x in (student, teacher))
    images, channels = student.shape[:2]
    return F.kl_div(ours, theirs, reduction='sum', log_target=True) * temperature**2 / (images * channels)


def pearson_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the loss of PKD (arXiv 2207.02039): one minus the Pearson correlation, averaged over channels.

    The correlation of a channel is computed over images and positions.

    Args:
        student: Feature map of the student, (N, C, H, W). N * H * W must be above 1.
        teacher: Feature map of the teacher, of the same shape.
    """
    # Half the squared distance of standardised values is one minus their correlation.
    ours, theirs = (F.batch_norm(x.float(), None, None, training=True, eps=1e-6) for x in (student, teacher))
    return F.mse_loss(ours, theirs) / 2


class Distiller(nn.Module):
    """Losses between the feature maps of a student and a teacher, with 1x1 projectors where their widths differ.

    Feature maps are those that the heads read: the neck's, or the backbone's if there is no neck. Feature maps of
    student and teacher with the same output stride are paired, see ``match_strides``.

    Args:
        student: A model of mmdet or mmseg. Forward hooks take the feature maps of its neck or backbone and, with
            ``logits_weight``, its class scores. The student is left in training mode.
        teacher: A model of the same package. It is set to evaluation mode and gets no gradients.
        loss: ``cwd`` (``channel_wise_loss``) or ``pkd`` (``pearson_loss``); loss of each pair of feature maps.
        weight: Weight of ``loss``; 0 to leave it out.
        temperature: Temperature of ``channel_wise_loss``.
        logits_weight: Weight of ``channel_wise_loss`` between the class scores of student and teacher; 0 to leave it
            out.
        bf16: Whether to run the teacher in bfloat16; None to do so if the GPU, or without one the CPU, supports
            bfloat16 natively.

    Attributes:
        pairs: Pairs of feature maps, as (index in the student's, index in the teacher's); empty if ``weight`` is 0.
        strides: Output stride of each pair, in pixels.
        projectors: Projector of each pair; the identity if the numbers of channels are equal.

    Raises:
        UserError: Preprocessing, strides or class scores of student and teacher do not fit, or the teacher does not run
            in bfloat16.
    """

    scale: Tensor | None
    shift: Tensor | None

    def __init__(
        self,
        student: Any,
        teacher: Any,
        *,
        loss: str = 'cwd',
        weight: float = 1.0,
        temperature: float = 1.0,
        logits_weight: float = 0.0,
        bf16: bool | None = None,
    ) -> None:
        super().__init__()
        self.loss, self.weight, self.temperature, self.logits_weight = loss, weight, temperature, logits_weight
        self.bf16 = _computes_in_bf16() if bf16 is None else bf16
        self._teacher = _Outside(teacher.eval().requires_grad_(False))
        self._maps: Sequence[Tensor] | None = None
        self._scores: Sequence[Tensor] | None = None
        self._set_normalisation(student, teacher)
        images = torch.zeros(1, 3, PROBE_SIZE, PROBE_SIZE)
        with _evaluating(student):
            maps = student.extract_feat(images)
            scores = _class_scores(student, maps) if logits_weight else []
        targets, target_scores = self._run_teacher(images)
        strides, teacher_strides = _strides(maps, 'student'), _strides(targets, 'teacher')
        self.pairs = match_strides(strides, teacher_strides) if weight else []
        if weight and not self.pairs:
            raise UserError(
                f'--teacher does not fit: its feature maps have output strides {_listed(teacher_strides)}, those of '
                f'the student {_listed(strides)}; at least one must be the same'
            )
        self.strides = [strides[i] for i, _ in self.pairs]
        _check_scores(scores, target_scores)
        self.projectors = nn.ModuleList(
            nn.Identity() if maps[i].shape[1] == targets[j].shape[1]
            # No bias: neither loss depends on a constant that is added to a channel.
            else nn.Conv2d(maps[i].shape[1], targets[j].shape[1], 1, bias=False)
            for i, j in self.pairs
        )  # fmt: skip
        (student.neck if getattr(student, 'neck', None) is not None else student.backbone).register_forward_hook(
            self._take_maps
        )
        if logits_weight:
            score_layer(student).register_forward_hook(self._take_scores)
        self.register_state_dict_post_hook(_leave_out)
        self.register_load_state_dict_post_hook(_expect_nothing)

    def forward(self, images: Tensor) -> dict[str, Any]:
        """Compute the losses for the feature maps that the hooks have taken in this step.

        Before each call, the student must have run on the same images in training mode.

        Args:
            images: Input of the student, (N, 3, H, W), as its data preprocessor returns it.

        Returns:
            Lists of weighted losses: ``loss_distill_maps`` with a loss for each pair of feature maps, and
                ``loss_distill_logits`` with a loss for each map of class scores. A list is missing if its weight,
                ``weight`` or ``logits_weight``, is 0.

        Raises:
            UserError: The teacher does not run in bfloat16.
        """
        maps, scores = self._maps, self._scores
        self._maps = self._scores = None
        assert maps is not None
        targets, target_scores = self._run_teacher(images)
        losses = [
            self.weight * self._map_loss(projector(maps[i]), resized_to(targets[j], maps[i]))
            for (i, j), projector in zip(self.pairs, self.projectors, strict=True)
        ]
        result: dict[str, Any] = dict(loss_distill_maps=losses) if losses else {}
        if self.logits_weight:
            assert scores is not None
            result['loss_distill_logits'] = [
                self.logits_weight * channel_wise_loss(score, resized_to(target, score), self.temperature)
                for score, target in zip(scores, target_scores, strict=True)
            ]
        return result

    def _map_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        if self.loss == 'pkd':
            return pearson_loss(student, teacher)
        return channel_wise_loss(student, teacher, self.temperature)

    def _run_teacher(self, images: Tensor) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Return feature maps and, if used, class scores of the teacher, for images normalised for the student."""
        teacher = self._teacher.net
        if next(teacher.parameters()).device != images.device:
            teacher.to(images.device)
        if self.scale is not None and self.shift is not None:
            images = (images.flip(1) if self.flips else images) * self.scale + self.shift
        in_bf16 = torch.autocast(images.device.type, torch.bfloat16) if self.bf16 else contextlib.nullcontext()
        try:
            with torch.no_grad(), in_bf16:
                maps = teacher.extract_feat(images)
                return maps, _class_scores(teacher, maps) if self.logits_weight else []
        except (RuntimeError, NotImplementedError) as error:
            if not self.bf16 or isinstance(error, torch.OutOfMemoryError):
                raise
            raise UserError(
                f'the teacher does not run in bfloat16 ({str(error).splitlines()[0]}): --cfg-options '
                'distillation.bf16=False'
            ) from error

    def _set_normalisation(self, student: Any, teacher: Any) -> None:
        """Set the affine map from images normalised for the student to images normalised for the teacher."""
        mean, std, converts = _normalisation(student)
        target_mean, target_std, target_converts = _normalisation(teacher)
        self.flips = converts != target_converts
        if self.flips:
            mean, std = mean.flip(0), std.flip(0)
        scale, shift = std / target_std, (mean - target_mean) / target_std
        same = not self.flips and bool((scale == 1).all() and (shift == 0).all())
        self.register_buffer('scale', None if same else scale, persistent=False)
        self.register_buffer('shift', None if same else shift, persistent=False)

    def _take_maps(self, module: nn.Module, _: Any, maps: Sequence[Tensor]) -> None:
        if module.training:
            self._maps = maps

    def _take_scores(self, module: nn.Module, _: Any, output: Any) -> None:
        if module.training:
            self._scores = [output] if isinstance(output, Tensor) else output[0]


class _Outside:
    """Hold a net outside the module tree, so that it is not trained, saved, wrapped, or copied by EMA."""

    def __init__(self, net: Any) -> None:
        self.net = net

    def __deepcopy__(self, memo: dict) -> '_Outside':
        return self


def attach_teacher(student: Any, settings: Mapping[str, Any], channels_last: bool = False) -> Distiller:
    """Build the teacher of a config and add its losses to those of a student.

    torch's CPU random number generator is left as it was, so that a seed gives the same weights and images as without a
    teacher.

    Args:
        student: The model, before it is wrapped for distributed training; changed in place.
        settings: ``distillation`` of a config. ``config.teacher`` sets and checks these settings.
        channels_last: Whether to store the teacher in channels-last memory layout, see ``use_channels_last``.

    Returns:
        The module that computes the losses, which is now a child of the student.

    Raises:
        UserError: The checkpoint cannot be read, its SHA-256 is not that of the config, its model cannot be built here,
            its weights do not fit this model, or student and teacher do not fit.
    """
    checkpoint = read_checkpoint(settings['checkpoint'])
    if checkpoint.sha256 != settings['sha256']:
        raise UserError(f'--teacher {checkpoint.path} has been replaced: its SHA-256 is not that of this config')
    with torch.random.fork_rng(devices=[]):
        try:
            with DefaultScope.overwrite_default_scope(settings['scope']):
                teacher = MODELS.build(settings['model'])
        # The config is somebody else's: a part may be missing here, or take other arguments.
        except Exception as error:
            raise UserError(
                f'--teacher {checkpoint.path}: its model cannot be built here: {type(error).__name__}: '
                f'{" ".join(str(error).split())[:300]}'
            ) from error
        load_into(teacher, checkpoint)
        if channels_last:
            use_channels_last(teacher)
        return add_teacher(student, teacher, bf16=settings['bf16'], **{name: settings[name] for name in SETTINGS})


def add_teacher(student: Any, teacher: Any, **settings: Any) -> Distiller:
    """Add the losses of a teacher to those that a student returns in training with ``mode='loss'``.

    Args:
        student: The model, before it is wrapped for distributed training; changed in place.
        teacher: A trained model of the same package, see ``Distiller``.
        **settings: See ``Distiller``.

    Returns:
        The module that computes the losses, which is now a child of the student.

    Raises:
        UserError: See ``Distiller``.
    """
    distiller = Distiller(student, teacher, **settings)
    student.add_module(NAME, distiller)
    student.register_forward_hook(_add_losses, with_kwargs=True)
    return distiller


@HOOKS.register_module()
class DistillationHook(Hook):
    """Hook that saves the projectors in checkpoints with the state of the optimiser, and loads them on resuming.

    The projectors are an entry of their own, not part of ``state_dict``, so that the other entries of a checkpoint are
    the same as without a teacher.
    """

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if 'optimizer' in checkpoint:
            state = weights_to_cpu(_distiller(runner).projectors.state_dict())
            settings: Any = runner.cfg[NAME]
            values = {name: settings[name] for name in SETTINGS}
            checkpoint[NAME] = dict(teacher=settings.sha256, settings=values, projectors=dict(state))

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        if runner._resume and NAME in checkpoint:
            try:
                _distiller(runner).projectors.load_state_dict(checkpoint[NAME]['projectors'])
            except RuntimeError as error:
                raise UserError(
                    'the checkpoint was trained with a teacher and another student, whose feature maps have other '
                    'widths: continue it with the same config and --backbone'
                ) from error


def match_strides(student: Sequence[float], teacher: Sequence[float]) -> list[tuple[int, int]]:
    """Pair the feature maps of student and teacher that have the same output stride.

    If student or teacher has several feature maps of a stride, the last of the student is paired with the last of the
    teacher, the one before it with the one before, and so on. Feature maps that are left over are not paired.

    Args:
        student: Output stride of each feature map of the student, in pixels.
        teacher: Output stride of each feature map of the teacher, in pixels.

    Returns:
        Pairs (index in ``student``, index in ``teacher``), sorted by stride; empty if no stride is the same.
    """
    pairs: list[tuple[int, int]] = []
    for stride in sorted(set(student) & set(teacher)):
        indices = [[i for i, value in enumerate(strides) if value == stride] for strides in (student, teacher)]
        count = min(map(len, indices))
        pairs += zip(*(found[-count:] for found in indices), strict=True)
    return pairs


def _add_losses(student: Any, _: Any, kwargs: dict[str, Any], losses: Any) -> dict[str, Any] | None:
    if not student.training or kwargs.get('mode') != 'loss':
        return None
    return {**losses, **getattr(student, NAME)(kwargs['inputs'])}


def _leave_out(_: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
    for key in [key for key in state if key.startswith(prefix)]:
        del state[key]


def _expect_nothing(_: nn.Module, incompatible: Any) -> None:
    incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if f'{NAME}.' not in key]


def _distiller(runner: Runner) -> Distiller:
    return getattr(runner.model.module if is_model_wrapper(runner.model) else runner.model, NAME)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Any:
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train()


def _computes_in_bf16() -> bool:
    """Return True if the device that trains computes in bfloat16 natively; on other CPUs it is slower than float32."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # torch 2.6 has no get_capabilities.
    capabilities: dict[str, Any] = getattr(torch.cpu, 'get_capabilities', dict)()
    return bool(capabilities.get('avx512_bf16'))


def _normalisation(model: Any) -> tuple[Tensor, Tensor, bool]:
    """Return mean and standard deviation, (3, 1, 1), and whether the order of channels is converted."""
    preprocessor: Any = getattr(model, 'data_preprocessor', None)
    if not hasattr(preprocessor, '_enable_normalize'):
        raise UserError(
            f'a data preprocessor of type {type(preprocessor).__name__} does not say how it normalises images; '
            '--teacher needs one such as DetDataPreprocessor or SegDataPreProcessor in both student and teacher'
        )
    normalises = preprocessor._enable_normalize
    mean, std = (preprocessor.mean, preprocessor.std) if normalises else (torch.zeros(3, 1, 1), torch.ones(3, 1, 1))
    # Both mmdet and mmseg read images as BGR, so that equal conversions give equal orders.
    return mean.expand(3, 1, 1).clone(), std.expand(3, 1, 1).clone(), converts_channels(preprocessor)


def _strides(maps: Any, owner: str) -> list[float]:
    if not isinstance(maps, list | tuple) or not all(isinstance(x, Tensor) and x.ndim == 4 for x in maps):
        raise UserError(f'--teacher: the feature maps of the {owner} are not tensors (N, C, H, W)')
    return [PROBE_SIZE / x.shape[-1] for x in maps]


def _listed(strides: Sequence[float]) -> str:
    return ', '.join(f'{stride:g}' for stride in strides)


def score_layer(model: Any) -> nn.Module:
    """Return the module that outputs the class scores, or a tuple that begins with them."""
    head = getattr(model, 'bbox_head', None)
    # Not decode_head itself: mmseg calls its `forward` directly, which runs no hooks.
    layer = head if head is not None else getattr(getattr(model, 'decode_head', None), 'conv_seg', None)
    if not isinstance(layer, nn.Module):
        raise UserError(
            f'distillation.logits_weight needs dense heads; {type(model).__name__} has neither bbox_head nor '
            'decode_head.conv_seg: set logits_weight to 0'
        )
    return layer


def _class_scores(model: Any, maps: Sequence[Tensor]) -> Sequence[Tensor]:
    if score_layer(model) is getattr(model, 'bbox_head', None):
        return model.bbox_head(maps)[0]
    return [model.decode_head(maps)]


def _check_scores(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> None:
    """Check that the class scores of both nets have equal numbers of channels; height and width may differ."""
    shapes = [[tuple(x.shape[1:]) for x in scores] for scores in (student, teacher)]
    if [shape[0] for shape in shapes[0]] != [shape[0] for shape in shapes[1]]:
        raise UserError(
            f'distillation.logits_weight: the class scores of the student have shapes (C, H, W) {shapes[0]} for an '
            f'image of {PROBE_SIZE}x{PROBE_SIZE} pixels, those of the teacher {shapes[1]}; set logits_weight to 0, or '
            'use a teacher with the same head and anchors'
        )


def resized_to(target: Tensor, reference: Tensor) -> Tensor:
    """Resize to the size of a reference; sizes differ where the two nets round odd sizes differently."""
    if target.shape[-2:] == reference.shape[-2:]:
        return target
    return F.interpolate(target.float(), reference.shape[-2:], mode='bilinear', align_corners=False)
