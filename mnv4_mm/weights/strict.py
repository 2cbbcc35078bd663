"""Strict loading of pretrained weights into a backbone: what is missing or left over is an error that lists it."""

import os
import pickle
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from mnv4_mm.errors import UserError
from mnv4_mm.weights.tags import TAGS

# The classifier of timm's MobileNetV4: 1x1 convolution to 1280 with its norm, and the linear layer.
CLASSIFIER = ('conv_head', 'norm_head', 'bn2', 'classifier')


def load_pretrained(net: nn.Module, checkpoint: str, prefix: str = '') -> None:
    """Loads ``init_cfg=dict(type='Pretrained', checkpoint=..., prefix=...)`` strictly.

    The file is read by mmengine's CheckpointLoader: ``timm://<tag>``, or a local ``.safetensors`` or ``.pth`` file,
    which goes by the scheme ``tensors://`` (see ``mnv4_mm.weights``) and so is never unpickled.

    Args:
        net: A backbone whose parameter names are timm's, with ``blocks`` for stages.
        checkpoint: Where the weights are.
        prefix: Take only keys that begin with it, and cut it off: ``backbone.`` for a detector's checkpoint.

    Raises:
        UserError: keys are missing, left over or of another shape. Keys of the classifier and of maps that were not
            built are dropped, with a line that names them.
    """
    tag = TAGS.get(checkpoint.removeprefix('timm://')) or TAGS.get(Path(checkpoint).stem)
    arch = getattr(net, 'arch', None)
    if tag and arch and tag.arch != arch:
        # conv_m and conv_blur_m have the same keys and shapes and are different nets.
        raise UserError(f'{checkpoint} holds weights of {tag.arch}, and this net is {arch}')
    try:
        with tensors_only():
            content = CheckpointLoader.load_checkpoint(
                checkpoint if '://' in checkpoint else f'tensors://{checkpoint}', 'cpu'
            )
    except pickle.UnpicklingError as error:
        raise UserError(f'{checkpoint} is refused: it holds objects that would run code when read') from error
    state = tensor_state(content, checkpoint)
    if prefix:
        prefix = prefix.rstrip('.') + '.'
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if not state:
            raise UserError(f'{checkpoint} has no keys that begin with {prefix!r}')
    own = net.state_dict()
    spare = {key for key in state if key not in own and _is_spare(key, net)}
    problems = differences(own, {key: value for key, value in state.items() if key not in spare})
    if problems:
        raise UserError(f'{checkpoint} does not fit {type(net).__name__}: {problems}')
    if spare:
        print_log(f'{checkpoint}: left out {", ".join(sorted(_groups(spare)))}', logger='current')
    net.load_state_dict({key: state[key] for key in own})


def tensor_state(content: Any, path: str | Path) -> dict[str, Tensor]:
    """The ``state_dict`` of a checkpoint, or a bare one.

    Raises:
        UserError: it is not a dict of tensors by name.
    """
    state = content.get('state_dict', content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not state:
        raise UserError(f'{path} holds no weights: expected a state_dict of tensors')
    if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()):
        raise UserError(f'{path} holds no weights: expected a state_dict of tensors, by name')
    return state


@contextmanager
def tensors_only() -> Iterator[None]:
    """Makes every ``torch.load`` below this call, mmengine's and mmdet's too, read tensors only.

    mmengine unpickles anything where its safe attempt fails; torch's own switch takes that way out.
    """
    switch = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
    before = os.environ.get(switch)
    os.environ[switch] = '1'
    try:
        yield
    finally:
        os.environ.pop(switch)
        if before is not None:
            os.environ[switch] = before


def pretrained_entries(init_cfg: Any) -> list[dict]:
    """The entries of type Pretrained of an ``init_cfg``, which mmengine allows to be a dict or a list of dicts."""
    entries = [init_cfg] if isinstance(init_cfg, dict) else list(init_cfg or [])
    return [entry for entry in entries if entry.get('type') == 'Pretrained']


def _is_spare(key: str, net: nn.Module) -> bool:
    """Whether a key belongs to the classifier or to a stage behind the last one that was built."""
    stage = re.match(r'blocks\.(\d+)\.', key)
    return (
        int(stage.group(1)) >= len(list(net.get_submodule('blocks').children()))
        if stage
        else key.split('.')[0] in CLASSIFIER
    )


def _groups(keys: Iterable[str]) -> set[str]:
    return {'.'.join(key.split('.')[:2]) if key.startswith('blocks.') else key.split('.')[0] for key in keys}


def differences(own: dict[str, Tensor], given: dict[str, Tensor]) -> str:
    """What keeps one state from being loaded over another, in words; empty if nothing does."""
    found = {
        'missing': [key for key in own if key not in given],
        'left over': [key for key in given if key not in own],
        'of another shape': [
            f'{key} {tuple(given[key].shape)} for {tuple(own[key].shape)}'
            for key in own
            if key in given and given[key].shape != own[key].shape
        ],
    }
    return '; '.join(
        f'{len(keys)} {what} ({", ".join(keys[:3])}{", ..." if keys[3:] else ""})'
        for what, keys in found.items()
        if keys
    )
