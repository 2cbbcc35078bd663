"""Training of a supernet: in each step, the largest net, the smallest net and random nets of a search space.

This is the sandwich rule with in-place distillation (arXiv 1903.05134): the largest net learns from the ground truth;
the others learn from the ground truth and from the class scores of the largest net in the same step. As in
once-for-all, all nets of a step get the same images in the same input size, which is drawn at random for each step. If
large nets always had large inputs, the last channels of a layer would learn large inputs only, and the first ones all.

The model that is trained is that of the largest net. It stays an ordinary model, whose checkpoints, evaluation and
distributed training are those of any other. Only its loss in training is replaced, by that of several nets that use
parts of its weights.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS, MODELS, DefaultScope
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from mnv4_mm.engine.amp import prepare_for_bfloat16
from mnv4_mm.engine.distillation import channel_wise_loss, score_layer
from mnv4_mm.engine.step import use_channels_last
from mnv4_mm.models.input_size import scaled_size
from mnv4_mm.models.space import SPACES, Genes, Subnet, at_scale
from mnv4_mm.models.supernet import subnet_model, subnet_state

NAME = 'supernet'  # key of the config, and attribute of the model


class Sandwich:
    """Losses of the nets of a search space that share the weights of the largest one.

    Args:
        model: The detector or segmenter with the largest net, before ``train_supernet`` replaces its loss.
        config: ``model`` of its config.
        settings: ``supernet`` of its config, see ``config.supernet``.
        input_size: ``input_size`` of its config, (width, height) in pixels.
        scope: ``default_scope`` of its config.
        seed: Seed of the run.
        channels_last: Whether the model was changed by ``use_channels_last``.

    Attributes:
        step: Number of the current step. With the seed, it determines the random nets.
    """

    def __init__(
        self,
        model: Any,
        config: Mapping[str, Any],
        settings: Mapping[str, Any],
        input_size: Sequence[int],
        scope: str,
        seed: int,
        channels_last: bool = False,
    ) -> None:
        self.space = SPACES[settings['space']]
        self.count, self.weight = settings['random'], settings['distillation']
        self.seed, self.step = seed, 0
        self._model, self._ordinary_loss = model, model.loss
        self._config, self._input_size, self._scope = config, input_size, scope
        self._channels_last = channels_last
        self._scores: list[Tensor] = []
        if self.weight:
            score_layer(model).register_forward_hook(self._take_scores)
        # Two nets of each input size are used again and again.
        numbers = range(len(self.space.scales))
        often = {at_scale(genes, i) for genes in (self.space.largest(), self.space.smallest()) for i in numbers}
        self._built = {genes: self._build(genes) for genes in sorted(often - {self.space.largest()})}

    def nets(self) -> list[Genes]:
        """Return the largest, the smallest and the random nets of the current step, the same in all processes.

        All have the same input size, a random one of those of the space.
        """
        generator = random.Random(f'{self.seed} {self.step}')  # noqa: S311
        number = generator.randrange(len(self.space.scales))
        others = [self.space.sample(generator) for _ in range(self.count)]
        return [at_scale(genes, number) for genes in (self.space.largest(), self.space.smallest(), *others)]

    def loss(self, inputs: Tensor, samples: Sequence[Any]) -> dict[str, Any]:
        """Return the losses of the nets of this step, divided by the number of nets.

        The norm statistics of the model follow from the steps in which the largest net has the largest input. Those of
        all other nets are thrown away: a search computes them anew.

        Args:
            inputs: Normalised images, (N, 3, H, W).
            samples: Data samples of mmdet or mmseg with the ground truth.

        Returns:
            The losses of the largest net, by their usual names; ``loss_nets`` with the loss of each other net, and
                ``loss_nets_distill`` with its loss of distillation unless the weight of distillation is 0. If the model
                is not in training mode, its ordinary loss.
        """
        if not self._model.training:
            return self._ordinary_loss(inputs, samples)
        own = dict(self._model.named_parameters(remove_duplicate=False))
        own |= {name: buffer.clone() for name, buffer in self._model.named_buffers(remove_duplicate=False)}
        largest, *others = self.nets()
        share = 1 / (1 + len(others))
        batch = scaled_batch(inputs, samples, self.space.subnet(largest).scale)
        losses = {
            name: _times(share, value) if 'loss' in name else value
            for name, value in self._loss_of(largest, own, *batch).items()
        }
        targets = [scores.detach() for scores in self._scores]
        losses |= dict(loss_nets=[], **({'loss_nets_distill': []} if self.weight else {}))
        for genes in others:
            losses['loss_nets'].append(share * _total(self._loss_of(genes, own, *batch)))
            if self.weight:
                pairs = zip(self._scores, targets, strict=True)
                distilled = sum(channel_wise_loss(score, target) for score, target in pairs)
                losses['loss_nets_distill'].append(share * self.weight * distilled)
        self._scores = []
        return losses

    def _loss_of(self, genes: Genes, own: Mapping[str, Tensor], inputs: Tensor, samples: Any) -> dict[str, Any]:
        """Return the losses of a net with a part of the weights ``own``, and keep its class scores."""
        self._scores = []
        if genes == self.space.largest():
            return self._ordinary_loss(inputs, samples)
        net, shapes, subnet = self._built.get(genes) or self._build(genes)
        return functional_call(net, subnet_state(own, shapes, subnet.rows), (inputs, samples), dict(mode='loss'))

    def _build(self, genes: Genes) -> tuple[nn.Module, dict[str, torch.Size], Subnet]:
        """Build a net; return it, the shapes of its parameters and buffers, and its place in the supernet."""
        # The random numbers of the step must not depend on which nets were built before.
        with torch.random.fork_rng(devices=[]), DefaultScope.overwrite_default_scope(self._scope):
            net = MODELS.build(subnet_model(self._config, self.space, genes, self._input_size)).train()
        if self._channels_last:
            use_channels_last(net)
        prepare_for_bfloat16(net)  # the optimiser wrapper does not find this net in the model
        if self.weight:
            score_layer(net).register_forward_hook(self._take_scores)
        # Once each: RTMDet's levels share convolutions.
        tensors = dict(net.named_parameters()) | dict(net.named_buffers())
        return net, {name: tensor.shape for name, tensor in tensors.items()}, self.space.subnet(genes)

    def _take_scores(self, module: nn.Module, _: Any, output: Any) -> None:
        if module.training:
            self._scores = [output] if isinstance(output, Tensor) else list(output[0])


def train_supernet(
    model: Any,
    config: Mapping[str, Any],
    settings: Mapping[str, Any],
    input_size: Sequence[int],
    scope: str,
    seed: int,
    channels_last: bool = False,
) -> Sandwich:
    """Replace the losses that a model returns in training, with ``mode='loss'``, by those of several nets of a space.

    The arguments are those of ``Sandwich``. ``model`` is changed in place, before it is wrapped for distributed
    training.
    """
    sandwich = Sandwich(model, config, settings, input_size, scope, seed, channels_last)
    model.__dict__[NAME] = sandwich  # no child module: it has no weights
    model.loss = sandwich.loss  # ``forward`` calls it; a hook could only add to losses of the largest input
    return sandwich


@HOOKS.register_module()
class SandwichHook(Hook):
    """Hook that passes the number of the step to the ``Sandwich`` of a model, also after a resume."""

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        getattr(model, NAME).step = runner.iter


def scaled_batch(inputs: Tensor, samples: Sequence[Any], scale: float) -> tuple[Tensor, Sequence[Any]]:
    """Resize a batch of images and their boxes.

    Masks of a segmenter keep their size, because its losses resize the logits to it.

    Args:
        inputs: Normalised images, (N, 3, H, W).
        samples: Data samples of mmdet or mmseg with the ground truth; not changed.
        scale: Factor of height and width, which are rounded to multiples of 32.

    Returns:
        The images and samples; ``inputs`` and ``samples`` themselves for a scale of 1.
    """
    old = inputs.shape[-2:]
    new = scaled_size(old, scale)
    if new == tuple(old):
        return inputs, samples
    factors = new[0] / old[0], new[1] / old[1]
    # Without antialiasing, the images are nearly as sharp as those that the test pipeline resizes.
    images = functional.interpolate(inputs, new, mode='bilinear')
    return images, [_scaled_sample(sample, *factors, new) for sample in samples]


def _scaled_sample(sample: Any, vertical: float, horizontal: float, size: tuple[int, int]) -> Any:
    if 'gt_instances' not in sample:
        return sample
    scaled = sample.clone()
    for name in ('gt_instances', 'ignored_instances'):
        if name in sample:
            instances = sample.get(name).clone()  # that of the sample itself is shared
            instances.bboxes = instances.bboxes * instances.bboxes.new_tensor([horizontal, vertical] * 2)
            setattr(scaled, name, instances)
    shapes: dict[str, tuple[int, int]] = dict(batch_input_shape=size)
    for key in ('img_shape', 'pad_shape'):
        height, width, *_ = sample.get(key)
        shapes[key] = round(height * vertical), round(width * horizontal)
    scaled.set_metainfo(shapes)
    return scaled


def _total(losses: Mapping[str, Any]) -> Tensor:
    """Return the sum of the losses of a model, as mmengine sums them: values other than losses are left out."""
    values = [value for name, value in losses.items() if 'loss' in name]
    parts = [part for value in values for part in (value if isinstance(value, list | tuple) else [value])]
    return torch.stack([part.mean() for part in parts]).sum()


def _times(factor: float, value: Any) -> Any:
    """Multiply an entry of the losses of a model, a tensor or a list of tensors, by a factor."""
    return [factor * part for part in value] if isinstance(value, list | tuple) else factor * value
