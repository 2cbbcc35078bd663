"""Load weights into a module strictly: missing, unexpected or wrongly shaped weights are an error that lists them."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn

from mnv4_mm.errors import UserError
from mnv4_mm.weights.checkpoint import Checkpoint
from mnv4_mm.weights.hub import read_weights
from mnv4_mm.weights.tags import TAGS

# The classifier of timm's MobileNetV4: 1x1 convolution to 1280 channels, its norm, and the linear layer.
CLASSIFIER = ('conv_head', 'norm_head', 'bn2', 'classifier')


def load_pretrained(net: nn.Module, checkpoint: str, prefix: str = '') -> None:
    """Load the weights of ``init_cfg=dict(type='Pretrained', checkpoint=..., prefix=...)`` into a backbone.

    Weights of the classifier and of stages that were not built are dropped, and a log line names them.

    Args:
        net: A backbone whose parameter names are timm's, with ``blocks`` as stages.
        checkpoint: Source of the weights, see ``read_weights``.
        prefix: Take only keys with this prefix and remove it, e.g. ``backbone.`` for a detector's checkpoint.

    Raises:
        UserError: The source cannot be read, or has no keys with the prefix; or its weights are missing, unexpected, of
            another shape, or published for another net.
    """
    tag = TAGS.get(checkpoint.removeprefix('timm://')) or TAGS.get(Path(checkpoint).stem)
    arch = getattr(net, 'arch', None)
    if tag and arch and tag.arch != arch:
        # Keys and shapes cannot tell conv_m and conv_blur_m apart.
        raise UserError(f'{checkpoint} holds weights of {tag.arch}, and this net is {arch}')
    state = tensor_state(read_weights(checkpoint), checkpoint)
    if prefix:
        prefix = prefix.rstrip('.') + '.'
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if not state:
            raise UserError(f'{checkpoint} has no keys that begin with {prefix!r}')
    expected = net.state_dict()
    unused = {key for key in state if key not in expected and _is_droppable(key, net)}
    problems = differences(expected, {key: value for key, value in state.items() if key not in unused})
    if problems:
        raise UserError(f'{checkpoint} does not fit {type(net).__name__}: {problems}')
    if unused:
        print_log(f'{checkpoint}: left out {", ".join(sorted(_groups(unused)))}', logger='current')
    net.load_state_dict({key: state[key] for key in expected})


def load_into(model: nn.Module, checkpoint: Checkpoint, strict: bool = True) -> None:
    """Copy a checkpoint's weights into a model.

    Args:
        model: The net.
        checkpoint: A Runner's checkpoint or a bare ``state_dict``.
        strict: Raise an error if anything is missing, unexpected or of another shape. If False, load what fits and
            list the rest in a log line.

    Raises:
        UserError: The checkpoint holds no weights or, with ``strict``, they do not fit.
    """
    state = tensor_state(checkpoint.content, checkpoint.path)
    state = {key.removeprefix('module.'): value for key, value in state.items()}  # net wrapped for several GPUs
    expected = model.state_dict()
    problems = differences(expected, state)
    # See `engine.qat.ChannelScale`.
    has_factors, needs_factors = (any(key.endswith('.0.factor') for key in one) for one in (state, expected))
    if needs_factors and not has_factors and any('.parametrizations.' in key for key in state):
        raise UserError(f'{checkpoint.path} was fine-tuned by an earlier version of --qat: fine-tune the net again')
    if problems and strict:
        raise UserError(
            f'{checkpoint.path} does not fit this config (another backbone, head or number of classes?): {problems}'
        )
    if problems:
        print_log(f'{checkpoint.path} is loaded in part: {problems}', logger='current', level=logging.WARNING)
    fitting = {key: value for key, value in state.items() if key in expected and value.shape == expected[key].shape}
    model.load_state_dict(fitting, strict=False)


def rows_by_class(
    state: Mapping[str, Tensor],
    model: Mapping[str, Tensor],
    wider: Mapping[str, Tensor],
    old: Sequence[str],
    new: Sequence[str],
) -> dict[str, Tensor]:
    """Adapt the weights of a checkpoint to a model with other classes: keep the rows of classes that both have.

    The rows of a tensor are its slices along the first dimension. A tensor is class-dependent if its number of rows
    changes with the number of classes. Its rows are then ordered as in all heads of mmdet and mmseg: for each anchor
    the classes, followed by the background if there is one.

    Args:
        state: Weights of the checkpoint by name.
        model: Weights of the model by name. Rows of classes that the checkpoint does not have are taken from these.
        wider: Weights of the same model with one more class; only their shapes are used.
        old: Classes of the checkpoint in the order of labels.
        new: Classes of the model in the order of labels.

    Returns:
        The weights of ``state``, with class-dependent tensors adapted: rows of common classes and of the background are
            from the checkpoint, the others from the model. Class-dependent tensors whose shape does not match this
            order are left out.
    """
    kept = [(new.index(name), old.index(name)) for name in new if name in old]
    targets, sources = [target for target, _ in kept], [source for _, source in kept]
    fitted = dict(state)
    for key, value in state.items():
        if key not in model or model[key].shape == wider[key].shape:
            continue
        rows = len(model[key])
        anchors = len(wider[key]) - rows
        tail = model[key].shape[1:]
        others = rows // anchors - len(new) if anchors else -1  # 1 if there is a row for the background
        is_known = anchors and rows == anchors * (len(new) + others) and others >= 0
        if not (is_known and value.shape == (anchors * (len(old) + others), *tail)):
            del fitted[key]
            continue
        result = model[key].detach().clone().reshape(anchors, -1, *tail)
        source = value.to(result).reshape(anchors, -1, *tail)
        result[:, targets] = source[:, sources]
        result[:, len(new) :] = source[:, len(old) :]
        fitted[key] = result.reshape(model[key].shape)
    return fitted


def tensor_state(content: Any, source: str | Path) -> dict[str, Tensor]:
    """Return the ``state_dict`` of a checkpoint, without a copy.

    Args:
        content: Content of a checkpoint, or a bare ``state_dict``, which is returned as it is.
        source: Origin of the content, for the message.

    Raises:
        UserError: The content has no ``state_dict`` of tensors by name.
    """
    state = content.get('state_dict', content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not state:
        raise UserError(f'{source} holds no weights: expected a state_dict of tensors')
    if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()):
        raise UserError(f'{source} holds no weights: expected a state_dict of tensors, by name')
    return state


def pretrained_entries(init_cfg: Any) -> list[dict]:
    """Return the entries of type ``Pretrained`` in an ``init_cfg`` of mmengine.

    Args:
        init_cfg: A dict, a list of dicts, or None.

    Returns:
        The entries in their order; an empty list if there are none.
    """
    entries = [init_cfg] if isinstance(init_cfg, dict) else list(init_cfg or [])
    return [entry for entry in entries if entry.get('type') == 'Pretrained']


def differences(expected: dict[str, Tensor], state: dict[str, Tensor]) -> str:
    """Describe how a ``state_dict`` differs from that of a model in names and shapes.

    Args:
        expected: The ``state_dict`` of the model.
        state: The ``state_dict`` to be loaded.

    Returns:
        One line with the number and the first three names of the missing, the unexpected and the wrongly shaped
            tensors; an empty string if there are no differences.
    """
    groups = {
        'missing': [key for key in expected if key not in state],
        'unexpected': [key for key in state if key not in expected],
        'of another shape': [
            f'{key} {tuple(state[key].shape)} for {tuple(expected[key].shape)}'
            for key in expected
            if key in state and state[key].shape != expected[key].shape
        ],
    }
    return '; '.join(
        f'{len(keys)} {problem} ({", ".join(keys[:3])}{", ..." if keys[3:] else ""})'
        for problem, keys in groups.items()
        if keys
    )


def _is_droppable(key: str, net: nn.Module) -> bool:
    """Return True for keys of the classifier and of stages after the last one that was built."""
    stage = re.match(r'blocks\.(\d+)\.', key)
    return (
        int(stage.group(1)) >= len(list(net.get_submodule('blocks').children()))
        if stage
        else key.split('.')[0] in CLASSIFIER
    )


def _groups(keys: Iterable[str]) -> set[str]:
    return {'.'.join(key.split('.')[:2]) if key.startswith('blocks.') else key.split('.')[0] for key in keys}
