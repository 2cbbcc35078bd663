"""Strict loading of pretrained weights into a backbone: what is missing or left over is an error that lists it."""

import re
from collections.abc import Iterable

from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from mnv4_mm.errors import UserError

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
    content = CheckpointLoader.load_checkpoint(checkpoint if '://' in checkpoint else f'tensors://{checkpoint}', 'cpu')
    state = content.get('state_dict', content)
    if prefix:
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
