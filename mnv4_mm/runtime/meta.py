"""What an exported file says of itself: how to feed it, how to read what it gives, where it came from.

Inside the file where the format has room, and always as ``<file>.json`` beside it. Needs nothing but Python.
"""

import dataclasses
import hashlib
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mnv4_mm.errors import UserError

FORMAT = 1
META_KEY = 'mnv4_mm'  # names the JSON inside a file
Kind = Literal['raw', 'nms', 'logits', 'class_map']
Task = Literal['detection', 'segmentation']
Precision = Literal['fp32', 'fp16', 'int8']
# What a graph of a kind gives, in this order.
OUTPUTS: dict[str, tuple[str, ...]] = {
    'raw': ('boxes', 'scores'),
    'nms': ('boxes', 'scores', 'labels'),
    'logits': ('logits',),
    'class_map': ('class_map',),
}


@dataclass(frozen=True)
class Input:
    """What goes in.

    Attributes:
        size: Height and width in pixels; None: any multiples of ``divisor``, see also ``Meta.any_number``.
        layout: ``NHWC`` or ``NCHW``.
        dtype: ``uint8`` or ``float32``.
        channel_order: ``RGB`` or ``BGR``.
        normalise: Whether the caller has to: (pixel - mean) / std. Otherwise it takes pixels, 0 to 255.
        mean: Of each channel, in ``channel_order``.
        std: Likewise.
        divisor: See ``size``.
    """

    size: tuple[int, int] | None
    layout: Literal['NHWC', 'NCHW']
    dtype: Literal['uint8', 'float32']
    channel_order: Literal['RGB', 'BGR']
    normalise: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    divisor: int = 32


@dataclass(frozen=True)
class Resize:
    """How a picture is brought to the input's size.

    Attributes:
        mode: ``stretch``, or ``letterbox``: as large as fits with its shape kept, at the top left, the rest filled.
        pad: What the rest is filled with, in the input's ``channel_order``.
        scale: Where the input has no fixed size: the most that the long and the short side may be, in pixels.
    """

    mode: Literal['stretch', 'letterbox']
    pad: tuple[int, int, int]
    scale: tuple[int, int] | None = None


@dataclass(frozen=True)
class Selection:
    """Which boxes are detections: mmdet's ``test_cfg``.

    Attributes:
        score_thr: Scores must be above it.
        iou_thr: Of two boxes of a class that overlap by more, the better one stays.
        max_per_img: The best so many stay.
        min_size: Width and height in pixels of the input must be above it; -1: any.
        candidates: Most that are looked at, the best first: mmdet's ``nms_pre`` times the levels.
    """

    score_thr: float
    iou_thr: float
    max_per_img: int
    min_size: float
    candidates: int


@dataclass(frozen=True)
class Meta:
    """All of it.

    Attributes:
        task: ``detection`` or ``segmentation``.
        kind: What comes out, by ``OUTPUTS``. Detection: ``raw``: boxes (N, A, 4) as (x1, y1, x2, y2) in pixels of the
            input and scores (N, A, classes); ``nms``: boxes (K, 4), scores (K,), labels (K,), best first.
            Segmentation: ``logits`` (N, classes, H / s, W / s), or ``class_map`` (N, H, W).
        target: Name of the runtime.
        precision: ``fp32``, ``fp16`` or ``int8``.
        classes: Names in the order of labels.
        input: What goes in.
        resize: How a picture gets there.
        selection: Of a detector.
        category_ids: Of a detector: the data set's own number of each class.
        first_value: Of a segmenter: value in its data set's masks of the first class.
        palette: Of a segmenter: RGB of each class.
        source: Checkpoint, its SHA-256, config, versions.
        files: SHA-256 of each file of the export, by its name beside this one.
    """

    task: Task
    kind: Kind
    target: str
    precision: Precision
    classes: tuple[str, ...]
    input: Input
    resize: Resize
    selection: Selection | None = None
    category_ids: tuple[int, ...] | None = None
    first_value: int = 0
    palette: tuple[tuple[int, int, int], ...] | None = None
    source: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    @property
    def any_number(self) -> bool:
        """Whether it takes any number of pictures at once: not where what comes out is of one picture."""
        return self.input.size is None and self.kind in ('raw', 'logits')

    def to_json(self) -> str:
        content = dict(format=FORMAT, **dataclasses.asdict(self))
        return json.dumps(dict(content, sha256=checksum(content)), indent=1)

    @classmethod
    def from_json(cls, text: str | bytes, name: str | Path) -> 'Meta':
        """Reads and checks what ``to_json`` wrote.

        Args:
            text: The JSON.
            name: Where it is from, for messages.

        Raises:
            UserError: it is something else, damaged, or of a later version.
        """
        try:
            content = json.loads(text)
            if not isinstance(content, dict) or 'format' not in content:
                raise ValueError('it is not what tools/export.py writes')
            if content['format'] != FORMAT:
                raise ValueError('it was written by a later version of mnv4_mm')
            if content.pop('sha256', '') != checksum(content):
                raise ValueError('it is damaged or was changed (its SHA-256 is not that of the rest): export again')
            del content['format']
            meta: Meta = _read(cls, content, 'meta')
            if meta.kind not in (('raw', 'nms') if meta.task == 'detection' else ('logits', 'class_map')):
                raise ValueError(f'kind {meta.kind!r} is not of {meta.task}')
            if meta.task == 'detection' and meta.selection is None:
                raise ValueError('selection is missing')
            return meta
        except (ValueError, UnicodeDecodeError) as error:
            raise UserError(f'{name} cannot be read: {" ".join(str(error).split())}') from error


def _read(kind: Any, value: Any, where: str) -> Any:
    """A JSON value as a type: of the few kinds of types that Meta is made of."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return None if value is None else _read(arguments[0], value, where)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and isinstance(value, dict):
        hints, fields = typing.get_type_hints(kind), {item.name: item for item in dataclasses.fields(kind)}
        for name in fields.keys() ^ value.keys():
            raise ValueError(f'{where}.{name} is {"missing" if name in fields else "unknown"}')
        return kind(**{name: _read(hints[name], value[name], f'{where}.{name}') for name in fields})
    if origin is Literal and value in arguments:
        return value
    if origin is tuple and isinstance(value, list):
        kinds = [arguments[0]] * len(value) if arguments[-1] is ... else arguments
        if len(kinds) == len(value):
            return tuple(_read(a, b, where) for a, b in zip(kinds, value, strict=True))
    if origin is dict and isinstance(value, dict):
        return {name: _read(arguments[1], item, f'{where}.{name}') for name, item in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    if isinstance(kind, type) and type(value) is kind:
        return value
    raise ValueError(f'{where} is {value!r:.60}')


def sidecar(path: Path) -> Path:
    """Where the JSON of an exported file is."""
    return path.parent / f'{path.name}.json'  # '.' and '..' have one, too: it is not there


def read_meta(path: str | Path) -> Meta:
    """Reads the JSON beside an exported file and checks that the file is the one it was written for.

    Raises:
        UserError: one of them is missing, damaged or was changed.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f'no file {path}')
    if not sidecar(path).is_file():
        raise UserError(f'{path} has no {sidecar(path).name} beside it: it is not of tools/export.py, or moved alone')
    meta = Meta.from_json(sidecar(path).read_bytes(), sidecar(path))
    if not meta.files:
        raise UserError(f'{sidecar(path)} cannot be read: it names no files')
    for name, expected in meta.files.items():
        part = path.parent / name
        if not part.resolve().is_relative_to(path.parent.resolve()):
            raise UserError(f'{sidecar(path)} cannot be read: it names {name}, which is not beside it')
        if not part.is_file():
            raise UserError(f'{part} is missing: {path} does not work without it')
        if sha256(part) != expected:
            raise UserError(
                f'{part} is damaged or was changed since it was exported (its SHA-256 is not the one in '
                f'{sidecar(path).name}): export it again'
            )
    return meta


def checksum(content: dict[str, Any]) -> str:
    """SHA-256 of a JSON object's values, however they are laid out."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
