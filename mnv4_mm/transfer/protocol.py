"""Transfer protocols: which nets are trained with which heads, from which weights, with which seeds.

A protocol is a Python file of plain values, like a config (``configs/transfer/``). Imports nothing heavy.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from mnv4_mm.config.index import CONFIGS, near_names
from mnv4_mm.config.rules import check_backbone_name
from mnv4_mm.config.source import check_config_file, read_source
from mnv4_mm.errors import UserError

STARTS = ('random', 'imagenet')
# Control -> its change of the run, and the score that is expected.
CONTROLS = {
    'shuffled': 'trained on random labels: no better than a model that ignores the image',
    'twin': 'the same net under another name, with other seeds: the same score',
    'zeroed': 'the deepest feature map set to zero: a lower score',
    'distilled': 'the same net trained with a teacher: a higher score',
}
TWIN_SEEDS = 100  # added to the seeds of the control `twin`


@dataclass(frozen=True, kw_only=True)
class Head:
    """A detector or segmenter that a protocol trains on each backbone: its config and the length of its training.

    Exactly one of ``epochs`` and ``iters`` must be given, the one that the config counts.

    Attributes:
        config: Name or path of the config.
        epochs: Length of the training, for a config that counts in epochs.
        iters: Length of the training, for a config that counts in iterations.
        size: Height and width in pixels of the input of the exported file; None for the size of the config's test
            pipeline.
        cfg_options: Values that replace values of the config, by key.
    """

    config: str
    epochs: int | None = None
    iters: int | None = None
    size: tuple[int, int] | None = None
    cfg_options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """The teacher of the control ``distilled``. It is trained once, as its students are and with the first seed.

    Attributes:
        net: Its backbone.
        start: Weights that its backbone starts from, of ``STARTS``.
        cfg_options: Values that replace values of the students' config, such as ``distillation.weight``.
    """

    net: str
    start: str = 'random'
    cfg_options: Mapping[str, Any] = field(default_factory=dict)


class Run(NamedTuple):
    """One training of a protocol.

    Attributes:
        head: Key of ``Protocol.heads``.
        net: Backbone, ``mnv4_<arch>`` or ``timm:<name>``.
        start: One of ``STARTS``.
        control: One of ``CONTROLS``, or empty.
        seed: Seed of the initialisation, of the order and augmentation of the data, and of shuffled labels.
    """

    head: str
    net: str
    start: str
    control: str
    seed: int

    @property
    def name(self) -> str:
        """Name of the run, which is also a file name."""
        parts = (self.head, self.net.replace(':', '_'), self.start, self.control, f'seed{self.seed}')
        return '-'.join(re.sub(r'[^\w.]', '_', part) for part in parts if part)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A transfer protocol.

    Attributes:
        path: Its file.
        title: Name of the data set for tables.
        heads: Heads by name.
        nets: Backbones.
        starts: Weights that backbones start from, of ``STARTS``.
        seeds: Seeds with which each combination of head, net and start is trained.
        imagenet_nets: Backbones that are trained with the start ``imagenet``; all of ``nets`` if empty.
        controls: Controls to run, with the first head, net and start.
        teacher: Teacher of the control ``distilled``; None if that is not among the controls.
        train: Splits of the data to train on.
        test: Splits to evaluate on.
        block: Number of test images, successive by name, that the bootstrap draws together: more than one for the
            frames of a video, which resemble each other.
        needs_data: True if ``--data`` must name a folder; False if the configs name the data.
        minutes: Measured minutes of a run with the first net and head on one core, for ``--plan``; None if unknown.
        published: Published results to list below the table, each a ``dict(name=, value=, protocol=, source=)``.
    """

    path: Path
    title: str
    heads: Mapping[str, Head]
    nets: Sequence[str]
    starts: Sequence[str] = ('random',)
    seeds: Sequence[int] = (0, 1, 2)
    imagenet_nets: Sequence[str] = ()
    controls: Sequence[str] = ()
    teacher: Teacher | None = None
    train: Sequence[str] = ('train',)
    test: Sequence[str] = ('val',)
    block: int = 1
    needs_data: bool = True
    minutes: float | None = None
    published: Sequence[Mapping[str, Any]] = ()

    @property
    def name(self) -> str:
        """Name of the protocol."""
        return self.path.stem

    def runs(self) -> list[Run]:
        """Return all runs, controls included: first those of the first seed, so that every net has a score early."""
        runs: list[Run] = []
        first = next(iter(self.heads)), self.nets[0], self.starts[0]
        for seed in self.seeds:
            runs += [
                Run(head, net, start, '', seed)
                for head in self.heads
                for net in self.nets
                for start in self.starts
                if start != 'imagenet' or not self.imagenet_nets or net in self.imagenet_nets
            ]
            runs += [Run(*first, name, seed + TWIN_SEEDS * (name == 'twin')) for name in self.controls]
        return runs


def protocol_index() -> dict[str, Path]:
    """Return the names and files of the shipped protocols."""
    return {path.stem: path for path in sorted((CONFIGS / 'transfer').glob('*.py'))}


def read_protocol(name: str | Path) -> Protocol:
    """Read a protocol.

    Args:
        name: Name of a shipped protocol, or path of a file.

    Raises:
        UserError: There is no such protocol, or a value is missing, unknown or not allowed.
    """
    path = Path(name)
    if not path.is_file():
        index = protocol_index()
        if str(name) not in index:
            raise UserError(f'no protocol {name}: neither a file nor a shipped one{near_names(str(name), index)}')
        path = index[str(name)]
    if path.suffix != '.py':
        raise UserError(f'{path} is not a protocol: expected a .py file like those of configs/transfer')
    content = read_source(path)
    if content is None:
        raise UserError(f'{path} is not a protocol: it must consist of plain values')
    allowed = {item.name for item in fields(Protocol)} - {'path'}
    for key in content:
        if key not in allowed:
            raise UserError(f'{path}: {key!r} is not part of a protocol{near_names(key, allowed)}')
    for key in ('title', 'heads', 'nets'):
        if not content.get(key):
            raise UserError(f'{path} is not a protocol: it has no {key}')
    try:
        heads = {key: _head(value) for key, value in content.pop('heads').items()}
        if content.get('teacher'):
            content['teacher'] = Teacher(**content['teacher'])
        protocol = Protocol(path=path, heads=heads, **content)
        _check(protocol)
    except (TypeError, AttributeError, ValueError) as error:
        raise UserError(f'{path} is not a valid protocol: {error}') from error
    return protocol


def _head(value: Mapping[str, Any]) -> Head:
    head = Head(**value)
    check_config_file(head.config)
    if (head.epochs is None) == (head.iters is None):
        found = 'neither' if head.epochs is None else 'both'
        raise ValueError(f'a head needs either epochs or iters; that of {head.config} has {found}')
    return head


def _check(protocol: Protocol) -> None:
    for net in (*protocol.nets, *protocol.imagenet_nets, *([protocol.teacher.net] if protocol.teacher else [])):
        check_backbone_name(net)
    if ('distilled' in protocol.controls) != bool(protocol.teacher):
        raise ValueError("the control 'distilled' needs a teacher, and a teacher the control")
    starts = (*protocol.starts, *([protocol.teacher.start] if protocol.teacher else []))
    for names, choices in ((starts, STARTS), (protocol.controls, tuple(CONTROLS))):
        unknown = [name for name in names if name not in choices]
        if unknown:
            raise ValueError(f'{unknown[0]!r} is not one of {", ".join(choices)}')
    both = [name for name in protocol.train if name in protocol.test]
    if both:
        raise ValueError(f'the split {both[0]!r} is in both train and test')
    if not protocol.seeds or not all(type(seed) is int and 0 <= seed < TWIN_SEEDS for seed in protocol.seeds):
        raise ValueError(f'seeds must be integers from 0 to {TWIN_SEEDS - 1}, got {protocol.seeds!r}')
    if type(protocol.block) is not int or protocol.block < 1:
        raise ValueError(f'block must be a number of images, at least 1; got {protocol.block!r}')
    if protocol.minutes is not None and not isinstance(protocol.minutes, int | float):
        raise ValueError(f'minutes must be a number, got {protocol.minutes!r}')
    if len(set(protocol.runs())) < len(protocol.runs()):
        raise ValueError('a net, a start, a seed or a control is listed twice')


def select(
    runs: Sequence[Run],
    *,
    nets: Sequence[str] = (),
    heads: Sequence[str] = (),
    starts: Sequence[str] = (),
    seeds: Sequence[int] = (),
) -> list[Run]:
    """Return the runs whose net, head, start and seed are among the given ones; an empty list selects all.

    Raises:
        UserError: The protocol has no run with a given value.
    """
    for flag, chosen, values in (
        ('--nets', nets, {run.net for run in runs}),
        ('--heads', heads, {run.head for run in runs}),
        ('--starts', starts, {run.start for run in runs}),
        ('--seeds', seeds, {_listed_seed(run) for run in runs}),
    ):
        for value in chosen:
            if value not in values:
                raise UserError(f'{flag}: {value} is not in this protocol{near_names(str(value), map(str, values))}')
    return [
        run
        for run in runs
        if (not nets or run.net in nets)
        and (not heads or run.head in heads)
        and (not starts or run.start in starts)
        and (not seeds or _listed_seed(run) in seeds)
    ]


def _listed_seed(run: Run) -> int:
    """Return the seed as listed in the protocol: the runs of a twin have seeds shifted by ``TWIN_SEEDS``."""
    return run.seed - TWIN_SEEDS if run.control == 'twin' else run.seed
