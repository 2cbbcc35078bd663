"""Options of training and evaluation, listed once for the command line and the Python API.

Imports nothing heavy: a command builds its parser and checks its arguments before it imports torch.
"""

import argparse
import ast
import contextlib
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from mnv4_mm.errors import UserError
from mnv4_mm.models.space import SPACES
from mnv4_mm.paths import check_not_empty

# Launcher -> the command that starts its processes, and its environment variable for the rank on a machine.
LAUNCHERS = {
    'pytorch': ('torchrun --nproc_per_node=N', 'LOCAL_RANK'),
    'slurm': ('srun python', 'SLURM_LOCALID'),
    'mpi': ('mpirun python', 'OMPI_COMM_WORLD_LOCAL_RANK'),
}

# Option that --space does not allow -> the reason.
WITHOUT_SPACE = {
    **dict.fromkeys(('backbone', 'weights'), 'the backbone is the largest net of the space, from random weights'),
    'teacher': 'the largest net is the teacher of the others',
    'compiled': 'another net is built in each step',
    'qat': 'a net is fine-tuned for int8 after it has been chosen',
}

# Option that --qat does not allow -> the reason.
WITHOUT_QAT = {
    **dict.fromkeys(
        ('backbone', 'weights', 'size', 'levels', 'fit_anchors'), 'the model is that of the checkpoint, as it is'
    ),
    **dict.fromkeys(('amp', 'amp_dtype'), 'a rounding to 8 bits needs feature maps in float32'),
    'compiled': 'the net is captured as a graph of its own',
    'teacher': 'the feature maps of the neck are inside the captured graph',
}

OptionsT = TypeVar('OptionsT', bound='ConfigOptions')


def check_launcher(launcher: str) -> None:
    """Check that this process was started by the command of its launcher.

    Raises:
        UserError: The launcher is unknown, or its command did not start this process.
    """
    if launcher == 'none':
        return
    if launcher not in LAUNCHERS:
        raise UserError(f'--launcher must be one of none, {", ".join(LAUNCHERS)}, got {launcher!r}')
    command, local_rank = LAUNCHERS[launcher]
    if local_rank not in os.environ:
        raise UserError(
            f'--launcher {launcher} is for processes started by `{command} -m mnv4_mm ...`; see docs/many-machines.md'
        )


def check_input_size(size: Sequence[int]) -> None:
    """Check the value of ``--size``: a list or tuple of one or two multiples of 32.

    Raises:
        UserError: The value has another form, e.g. that of a single number.
    """
    sides = list(size) if isinstance(size, list | tuple) else [size]
    valid = all(isinstance(side, int) and not isinstance(side, bool) and side > 0 and side % 32 == 0 for side in sides)
    if not valid or len(sides) not in (1, 2) or not isinstance(size, list | tuple):
        raise UserError(
            f'--size takes one or two multiples of 32 (height and width), e.g. --size 640 or, in Python, size=[640]; '
            f'got {" ".join(map(str, sides))}'
        )


class KeyValueAction(argparse.Action):
    """Collect ``KEY=VALUE`` arguments in a dict, with values read by ``read_value``."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        pairs = dict(getattr(namespace, self.dest) or {})
        for argument in values:
            key, equals, text = argument.partition('=')
            if not (equals and key):
                parser.error(f'{self.option_strings[0]} takes KEY=VALUE, got {argument!r}')
            try:
                pairs[key] = read_value(text)
            except ValueError as error:
                parser.error(f'{self.option_strings[0]} {argument}: {error}')
        setattr(namespace, self.dest, pairs)


def read_value(text: str) -> Any:
    """Parse a value of ``--cfg-options``.

    The rules are those of mmengine's ``DictAction``, which takes seconds to import: ``1,2``, ``[a, b]`` and
    ``[(1, 2), [a]]`` are lists and tuples; quotes around a word are optional; ``true``, ``false``, ``None`` and numbers
    are converted; everything else is a string. Unlike in mmengine, a dict may be given as a Python literal, and spaces
    inside a string are kept, because a path may contain them.

    Raises:
        ValueError: Brackets do not match.
    """
    text = text.strip()
    if text.startswith('{'):
        with contextlib.suppress(ValueError, SyntaxError):
            return ast.literal_eval(text)
    text = text.strip('\'"').strip()
    is_tuple = _is_bracketed(text, '()')
    if is_tuple or _is_bracketed(text, '[]'):
        values = [read_value(item) for item in _split(text[1:-1])]
        return tuple(values) if is_tuple else values
    if ',' in text and (items := _split(text)) != [text]:
        return [read_value(item) for item in items]
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return number(text)
    return {'true': True, 'false': False}.get(text.lower(), None if text == 'None' else text)


def _is_bracketed(text: str, brackets: str) -> bool:
    """Return True if the first and the last character are brackets that belong together."""
    return len(text) > 1 and text[0] + text[-1] == brackets and 0 not in _depths(text)[:-1]


def _split(text: str) -> list[str]:
    """Split a text at the commas outside of brackets; a trailing comma is allowed."""
    depths = _depths(text)
    if depths and (depths[-1] or min(depths) < 0):
        raise ValueError('brackets do not match')
    commas = [i for i, (char, depth) in enumerate(zip(text, depths, strict=True)) if char == ',' and not depth]
    items = [text[start + 1 : end] for start, end in itertools.pairwise([-1, *commas, len(text)])]
    return items if items[-1].strip() else items[:-1]


def _depths(text: str) -> list[int]:
    """Return the number of open brackets after each character."""
    return list(itertools.accumulate((char in '([{') - (char in ')]}') for char in text))


def _option(default: Any, *, flag: str = '', minimum: int | None = None, **argument: Any) -> Any:
    """Define an option.

    Args:
        default: Default value.
        flag: Name on the command line; derived from the field's name if empty.
        minimum: Smallest allowed integer.
        **argument: Keyword arguments of ``ArgumentParser.add_argument``; ``choices`` are checked in the API too.
    """
    return field(default=default, metadata=dict(flag=flag, minimum=minimum, argument=argument))


@dataclass(frozen=True, kw_only=True)
class ConfigOptions:
    """Options that training and evaluation share.

    Raises:
        UserError: A value is not allowed.
    """

    backbone: str | None = _option(None, metavar='NAME', help='use another backbone, e.g. mnv4_conv_l')
    data: str | None = _option(
        None, metavar='DIR', help='your data set: boxes in any common format, or images and masks (docs/own_data.md)'
    )
    allow_dropped: bool = _option(
        False, action='store_true', help='leave out what is broken in --data, even if it is more than 1 %%'
    )
    cfg_options: Mapping[str, Any] | None = _option(
        None,
        nargs='+',
        action=KeyValueAction,
        metavar='KEY=VALUE',
        help='replace values of the config, e.g. train_cfg.max_epochs=3',
    )
    launcher: str = _option(
        'none',
        choices=('none', *LAUNCHERS),
        help='program that starts several processes (default: none; docs/scaling.md)',
    )

    def __post_init__(self) -> None:
        check_not_empty(**self.as_arguments())
        for option in fields(self):
            value = getattr(self, option.name)
            if value is None:
                continue
            flag, minimum = _flag(option), option.metadata['minimum']
            choices = option.metadata['argument'].get('choices')
            if choices and value not in choices:
                raise UserError(f'{flag} must be {_one_of(choices)}, got {value!r}')
            if minimum is not None and (isinstance(value, bool) or not isinstance(value, int) or value < minimum):
                raise UserError(f'{flag} must be an integer of at least {minimum}, got {value!r}')

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add all options to a parser. Parsed arguments are named like the fields."""
        for option in fields(cls):
            parser.add_argument(_flag(option), dest=option.name, default=option.default, **option.metadata['argument'])
        # Ignored: torch.distributed.launch passes it, and also sets the environment variable, which is read instead.
        parser.add_argument('--local_rank', '--local-rank', type=int, help=argparse.SUPPRESS)

    @classmethod
    def from_namespace(cls: type[OptionsT], namespace: argparse.Namespace) -> OptionsT:
        """Take the options from parsed arguments; others in the namespace are ignored.

        Raises:
            UserError: A value is not allowed.
        """
        return cls(**{option.name: getattr(namespace, option.name) for option in fields(cls)})

    def as_arguments(self) -> dict[str, Any]:
        """Return the options by name, as keyword arguments of the Python API."""
        return {option.name: getattr(self, option.name) for option in fields(self)}

    def as_command_line(self) -> list[str]:
        """Return the options that differ from their defaults as arguments of a command."""
        arguments: list[str] = []
        for option in fields(self):
            value, flag = getattr(self, option.name), _flag(option)
            if value == option.default:
                continue
            if isinstance(value, Mapping):
                arguments += [flag, *(f'{key}={item}' for key, item in value.items())]
            elif isinstance(value, bool):
                arguments.append(flag if value else flag.replace('--', '--no-', 1))
            elif isinstance(value, list | tuple):
                arguments += [flag, *map(str, value)]
            else:
                arguments += [flag, str(value)]
        return arguments


@dataclass(frozen=True, kw_only=True)
class TrainOptions(ConfigOptions):
    """Options of training: ``mnv4_mm.apis.train.train`` takes the same keyword arguments and describes them."""

    work_dir: str | None = _option(
        None, metavar='DIR', help='where to write (default: work_dirs/<config>, with backbone and data)'
    )
    resume: bool | str | Path = _option(  # noqa: RUF009 (returns a field)
        False,
        nargs='?',
        const=True,
        metavar='CHECKPOINT',
        help="continue from the work directory's last checkpoint, or from CHECKPOINT",
    )
    weights: str | None = _option(
        None,
        metavar='timm|none|FILE',
        help="start the backbone from timm's ImageNet weights, from random weights, or from a .safetensors or .pth "
        'file (default: from the config; docs/training.md)',
    )
    teacher: str | None = _option(
        None,
        metavar='CHECKPOINT',
        help='distil from this trained model of the same task, ours or of mmdet or mmseg (docs/distillation.md)',
    )
    teacher_config: str | None = _option(
        None, metavar='CONFIG', help='config of the teacher, if its checkpoint carries none'
    )
    qat: str | None = _option(
        None,
        metavar='CHECKPOINT',
        help='fine-tune this trained model for int8, in a tenth of its steps (docs/int8.md)',
    )
    space: str | None = _option(
        None,
        choices=tuple(SPACES),
        help='train a supernet: all nets of this search space at once (docs/search.md)',
    )
    epochs: int | None = _option(
        None, type=int, minimum=1, metavar='N', help='train for N epochs, with the schedule in proportion'
    )
    iters: int | None = _option(
        None, type=int, minimum=1, metavar='N', help='train for N iterations; for configs that count in iterations'
    )
    amp: bool = _option(False, action='store_true', help='mixed precision (GPU: float16, CPU: bfloat16)')
    amp_dtype: str | None = _option(None, choices=('fp16', 'bf16'), help='mixed precision with this type')
    channels_last: bool | None = _option(
        None,
        action=argparse.BooleanOptionalAction,
        help='keep feature maps as (N, H, W, C) in memory: same result, faster (default: from the config; the '
        'shipped ones do so)',
    )
    fused: bool | None = _option(
        None,
        action=argparse.BooleanOptionalAction,
        help='update all parameters in one kernel (default: if the optimizer supports it)',
    )
    compiled: bool = _option(
        False, flag='--compile', action='store_true', help='torch.compile for backbone, neck and head'
    )
    auto_scale_lr: bool | None = _option(
        None,
        action=argparse.BooleanOptionalAction,
        help='scale the learning rate to the actual batch size (default: with --data)',
    )
    size: Sequence[int] | None = _option(
        None,
        type=int,
        nargs='+',
        metavar='N',
        help='detection: height and width of the input, or one number for both; multiples of 32',
    )
    levels: int | None = _option(
        None,
        type=int,
        choices=(8, 16),
        help='SSDLite: output stride of its finest level; 8 adds a level for objects smaller than 48 pixels',
    )
    fit_anchors: bool = _option(
        False, action='store_true', help='detection: fit the anchors to the boxes of the training images'
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size is not None:
            check_input_size(self.size)
            object.__setattr__(self, 'size', tuple(self.size))
        if not isinstance(self.resume, bool | str | os.PathLike):
            raise UserError(f'--resume must be a checkpoint file, True or False, got {self.resume!r}')
        if isinstance(self.work_dir, os.PathLike):  # a config is written as text, with plain values
            object.__setattr__(self, 'work_dir', os.fspath(self.work_dir))
        for name in ('teacher', 'teacher_config', 'qat'):
            if isinstance(getattr(self, name), os.PathLike):
                object.__setattr__(self, name, os.fspath(getattr(self, name)))
        if self.teacher_config is not None and self.teacher is None:
            raise UserError('--teacher-config has no effect without --teacher CHECKPOINT')
        for name, excluded in (('space', WITHOUT_SPACE), ('qat', WITHOUT_QAT)):
            if getattr(self, name) is not None:
                self.check_excluded(f'--{name}', excluded)
        if self.epochs is not None and self.iters is not None:
            raise UserError('--epochs and --iters exclude each other: a config counts in one of them')

    def default_work_dir(self, config: str | Path) -> str:
        """Return ``work_dirs/<config>[_<backbone>][_<data>][_<space>][_int8]``, where runs without ``work_dir`` write.

        Args:
            config: Path or name of the config.
        """
        parts = [Path(config).stem]
        if self.backbone:
            parts.append(self.backbone)
        if self.data:
            parts.append(Path(self.data).resolve().name)
        if self.space:
            parts.append(self.space)
        if self.qat:
            parts.append('int8')
        return str(Path('work_dirs') / '_'.join(parts))

    def check_excluded(self, name: str, excluded: Mapping[str, str]) -> None:
        """Check that no option is given that another one excludes.

        Args:
            name: The other option, e.g. ``--space``, or the command that implies it.
            excluded: Names of the options, and the reason of each.

        Raises:
            UserError: One of them is given.
        """
        for option in fields(self):
            if option.name in excluded and getattr(self, option.name) != option.default:
                raise UserError(f'{name} and {_flag(option)} exclude each other: {excluded[option.name]}')


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(ConfigOptions):
    """Options of evaluation.

    ``mnv4_mm.apis.evaluate.evaluate_files`` takes the same keyword arguments and describes them.
    """

    work_dir: str | None = _option(
        None, metavar='DIR', help='where to write logs (default: a folder beside the checkpoint)'
    )
    out: str | None = _option(
        None, metavar='FILE.json|DIR', help='write detections in COCO result format, or class maps as PNG'
    )
    show_dir: str | None = _option(
        None, metavar='DIR', help='write images with ground truth on the left and predictions on the right'
    )
    on: str = _option(
        'val', choices=('val', 'train'), help='evaluate on the test set or on the training images (default: val)'
    )
    inference: str | None = _option(
        None,
        choices=('whole', 'slide'),
        help="segmentation: whole images, or overlapping windows of a training crop's size (default: from the config)",
    )


def _flag(option: Any) -> str:
    return option.metadata['flag'] or '--' + option.name.replace('_', '-')


def _one_of(choices: Sequence[str]) -> str:
    return ' or '.join(choices) if len(choices) == 2 else f'one of {", ".join(choices)}'
