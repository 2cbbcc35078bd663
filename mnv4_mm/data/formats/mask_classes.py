"""Class names of segmentation data, with their mask values or colours if a file states them."""

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from mnv4_mm.data.documents import read_json, read_text, read_yaml
from mnv4_mm.data.formats.ade20k_classes import ADE20K_CLASSES
from mnv4_mm.data.formats.classes import composed
from mnv4_mm.data.mask_values import Colour, pack
from mnv4_mm.errors import UserError

SETTINGS = 'masks.yaml'
SETTINGS_HELP = (
    f'{SETTINGS} in the data folder may have: classes (a list of names, or a name for each value), first_class (value '
    'of the first name), ignore (a list of values or RGB colours without a label), read (values or colours)'
)
MAX_BYTES = 2**20
# Names that mark unlabelled pixels instead of a class, in lower case.
VOID = {
    'void', 'unlabeled', 'unlabelled', 'unlabel', 'ignore', 'ignored', '__ignore__', '_ignore_', 'ignore_index',
    'dontcare', "don't care", 'unannotated',
}  # fmt: skip
BACKGROUND = {'background', '_background_', '__background__', 'bg', 'back_ground', 'hintergrund', 'backgrounds'}

T = TypeVar('T')


class ClassNames(NamedTuple):
    """Class names as stated by a file of the data set.

    Attributes:
        names: Names in the order of the file, or of the mask values if the file states values. Names of unlabelled
            pixels, such as ``void``, are included.
        source: The file. None if the names are those of a public data set.
        by_value: Name of each mask value, in the order of values. None if the file states no values.
        by_colour: Name of each packed colour, ``0xRRGGBB``. None if the file states no colours.
    """

    names: tuple[str, ...]
    source: Path | None = None
    by_value: dict[int, str] | None = None
    by_colour: dict[int, str] | None = None


class MaskSettings(NamedTuple):
    """Settings of a user's ``masks.yaml``.

    Attributes:
        path: The file. None if there is none.
        classes: Class names. None if the file does not state them.
        first_class: Mask value of the first class. None if the file does not state it.
        ignored: Mask values without a label; may be empty. None if the file has no ``ignore``, so that these values are
            guessed from the masks.
        ignored_colours: Packed colours without a label, ``0xRRGGBB``; may be empty. None if the file has no ``ignore``.
        read: How masks must be read, ``'values'`` or ``'colours'``. Empty if the file does not state it; the masks then
            decide.
    """

    path: Path | None = None
    classes: ClassNames | None = None
    first_class: int | None = None
    ignored: frozenset[int] | None = None
    ignored_colours: frozenset[int] | None = None
    read: str = ''


def is_background(name: str) -> bool:
    return name.strip().lower() in BACKGROUND


def is_void(name: str) -> bool:
    return name.strip().lower() in VOID


def read_settings(folders: Iterable[Path]) -> MaskSettings:
    """Read ``masks.yaml`` of the first folder that has one; return empty settings if none has.

    Raises:
        UserError: The file cannot be read, or has unknown keys or invalid values.
    """
    path = next((folder / SETTINGS for folder in folders if (folder / SETTINGS).is_file()), None)
    if path is None:
        return MaskSettings()
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError(f'{path} must be a mapping; {SETTINGS_HELP}')
    unknown = sorted(set(map(str, content)) - {'classes', 'first_class', 'ignore', 'read'})
    if unknown:
        raise UserError(f'{path} has the unknown key {unknown[0]}; {SETTINGS_HELP}')
    first, read = content.get('first_class'), content.get('read', '')
    if first is not None and _integer(first) is None:
        raise UserError(f'{path}: first_class must be a mask value, got {first!r}')
    if read not in ('', 'values', 'colours'):
        raise UserError(f'{path}: read must be values or colours, got {read!r}')
    values, colours = None, None
    if 'ignore' in content:
        ignore = content['ignore']
        entries = ignore if isinstance(ignore, list) and _colour(ignore) is None else [ignore]
        parsed = [(_integer(entry), _colour(entry)) for entry in entries]
        if (None, None) in parsed:
            wrong = entries[parsed.index((None, None))]
            raise UserError(f'{path}: ignore must be a list of values or of colours [R, G, B], got {wrong!r}')
        values = frozenset(value for value, _ in parsed if value is not None)
        colours = frozenset(colour for _, colour in parsed if colour is not None)
    names = content.get('classes')
    classes = None if names is None else _from_yaml_names(path, names, 'classes')
    if first is not None and classes is not None and classes.by_value is not None:
        raise UserError(f'{path}: first_class does not go with a name for each value')
    return MaskSettings(path, classes, _integer(first), values, colours, read)


def find_classes(folders: Sequence[Path]) -> ClassNames | None:
    """Read class names from the first file that has them.

    The file names in ``READERS`` are tried in their order, each in all folders before the next name.

    Args:
        folders: Folders to search, in this order: the root of the data set, the folders of the masks, ...

    Returns:
        The class names. None if no file has any.

    Raises:
        UserError: A file cannot be read, is invalid, or has no name or a name twice.
    """
    for name, read in READERS:
        for folder in folders:
            path = folder / name
            if path.is_file():
                classes = read(path)
                if classes is not None:
                    return _checked(classes)
    return None


def _checked(classes: ClassNames) -> ClassNames:
    """Compose the accents of class names (Unicode NFC), and check that there are names, and each occurs once."""
    if not classes.names:
        raise UserError(f'{classes.source} has no class names: write them into it, one per line')
    by_value, by_colour = classes.by_value, classes.by_colour
    classes = classes._replace(
        names=tuple(map(composed, classes.names)),
        by_value=by_value and {value: composed(name) for value, name in by_value.items()},
        by_colour=by_colour and {colour: composed(name) for colour, name in by_colour.items()},
    )
    counts = {name: classes.names.count(name) for name in classes.names}
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise UserError(
            f'{classes.source} has the class {twice[0]!r} {counts[twice[0]]} times: give each class its own name'
        )
    return classes


def _read_text(path: Path) -> str:
    if path.stat().st_size > MAX_BYTES:
        raise UserError(f'{path} has {path.stat().st_size} bytes: too many for a list of classes')
    return read_text(path)


def _integer(value: Any) -> int | None:
    """Return a non-negative integer, also if it is written as text. None for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value if value >= 0 else None
    return int(value) if isinstance(value, str) and re.fullmatch(r'\d{1,9}', value) else None


def _colour(value: Any) -> int | None:
    """Return the packed colour of [R, G, B]. None for anything else."""
    parts = [_integer(part) for part in value] if isinstance(value, list) else []
    colour = [part for part in parts if part is not None and part <= 255]
    return pack(colour) if len(parts) == len(colour) == 3 else None


def _read_lines(path: Path) -> ClassNames | None:
    """Read one class a line: a name, a value and a name, or a name and a colour in either order."""
    lines = [line.strip() for line in _read_text(path).splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    if '' in lines:
        raise UserError(
            f'{path}, line {lines.index("") + 1} is empty: write the class names one per line, without empty lines'
        )
    coloured = [_name_and_colour(line) for line in lines]
    if all(coloured):
        return _with_colours(path, [entry for entry in coloured if entry])
    numbered = [re.fullmatch(r'(\d+)\s*[\s:,;=]\s*(\S.*)', line) for line in lines]
    if all(numbered):
        return _with_values(path, [(int(match[1]), match[2].strip()) for match in numbered if match])
    if lines[:1] and lines[0].lower() == '__ignore__':  # labelme's labels.txt: it has no value
        lines = lines[1:]
    return ClassNames(tuple(lines), path)


def _name_and_colour(line: str) -> tuple[str, Colour] | None:
    colour = r'(?P<r>\d{1,3})\s*[\s,;]\s*(?P<g>\d{1,3})\s*[\s,;]\s*(?P<b>\d{1,3})'
    match = re.fullmatch(rf'(?P<name>.*?\S)\s*[\s:,;]\s*{colour}', line)
    match = match or re.fullmatch(rf'{colour}\s*[\s:,;]\s*(?P<name>\S.*)', line)
    return (match['name'], (int(match['r']), int(match['g']), int(match['b']))) if match else None


def _read_labelmap(path: Path) -> ClassNames | None:
    """Read CVAT's ``name:R,G,B:parts:actions``. Lines that begin with # are comments. None if there are no others.

    Raises:
        UserError: A line is something else.
    """
    entries = []
    for number, line in enumerate(_read_text(path).splitlines(), 1):
        if not line.strip() or line.lstrip().startswith('#'):
            continue
        match = re.fullmatch(r'\s*(.*?\S)\s*:\s*(\d+)\s*,\s*(\d+)\s*,\s*(\d+)\s*(:.*)?', line)
        if match is None:
            raise UserError(f'{path}, line {number} must be name:red,green,blue::, got {line.strip()!r}')
        colour = (int(match[2]), int(match[3]), int(match[4]))
        if max(colour) > 255:
            raise UserError(f'{path}, line {number} has a colour over 255: {line.strip()!r}')
        entries.append((match[1], colour))
    return _with_colours(path, entries) if entries else None


def _read_csv(path: Path) -> ClassNames | None:
    """Read ``name,r,g,b`` or Roboflow's ``Pixel Value, Class``, with a line of titles. None for other titles."""
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(_read_text(path).splitlines()) if any(row)]
    except csv.Error as error:
        raise UserError(f'{path} is not CSV: {error}') from error
    if not rows:
        return None
    titles = [cell.lower() for cell in rows[0]]
    if {'pixel value', 'class'} <= set(titles):
        value, name = titles.index('pixel value'), titles.index('class')
        return _with_values(
            path, list(_rows(path, rows, lambda row: (int(row[value]), row[name]), 'a value and a class'))
        )
    if {'name', 'r', 'g', 'b'} <= set(titles):
        name, red, green, blue = (titles.index(title) for title in ('name', 'r', 'g', 'b'))
        entries = _rows(
            path,
            rows,
            lambda row: (row[name], (int(row[red]), int(row[green]), int(row[blue]))),
            'a name and a colour of three numbers, 0 to 255',
        )
        return _with_colours(path, list(entries))
    return None


def _rows(path: Path, rows: Sequence[list[str]], parse: Callable[[list[str]], T], what: str) -> Iterator[T]:
    """Parse the rows after the titles of a CSV file.

    Raises:
        UserError: A row cannot be parsed.
    """
    for number, row in enumerate(rows[1:], 2):
        try:
            yield parse(row)
        except (ValueError, IndexError) as error:
            raise UserError(f'{path}, line {number}: expected {what}, got {",".join(row)!r}') from error


def _read_yaml(path: Path) -> ClassNames | None:
    """Read ``names`` of a data.yaml as YOLO has it. None if it has none."""
    content = read_yaml(path)
    if not isinstance(content, dict) or 'names' not in content:
        return None
    return _from_yaml_names(path, content['names'], 'names')


def _from_yaml_names(path: Path, names: Any, key: str) -> ClassNames:
    if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
        return _checked(ClassNames(tuple(str(name) for name in names), path))
    if isinstance(names, dict) and names:
        entries = [(_integer(value), str(name)) for value, name in names.items()]
        values = [(value, name) for value, name in entries if value is not None]
        if len(values) == len(entries):
            return _checked(_with_values(path, values))
    raise UserError(f'{path}: {key} must be a list of class names, or a name for each mask value, got {names!r:.200}')


def _read_json(path: Path) -> ClassNames | None:
    """Read a list of names, or a name for each value. None if it is something else."""
    content = read_json(path)
    if isinstance(content, list) and content and all(isinstance(name, str) for name in content):
        return ClassNames(tuple(content), path)
    if isinstance(content, dict) and content and all(re.fullmatch(r'\d+', key) for key in content):
        return _with_values(path, [(int(value), str(name)) for value, name in content.items()])
    return None


def _read_ade(path: Path) -> ClassNames:
    return ClassNames(ADE20K_CLASSES, None)


def _with_values(path: Path, entries: Sequence[tuple[int, str]]) -> ClassNames:
    by_value = dict(entries)
    if len(by_value) < len(entries):
        values = [value for value, _ in entries]
        twice = next(value for value in values if values.count(value) > 1)
        raise UserError(f'{path} has the mask value {twice} twice')
    ordered = dict(sorted(by_value.items()))
    return ClassNames(tuple(ordered.values()), path, by_value=ordered)


def _with_colours(path: Path, entries: Sequence[tuple[str, Colour]]) -> ClassNames:
    by_colour: dict[int, str] = {}
    for name, colour in entries:
        if max(colour) > 255:
            raise UserError(f'{path} has the colour {colour} for {name!r}: over 255')
        if by_colour.setdefault(pack(colour), name) != name:
            raise UserError(f'{path} has the colour {colour} for {by_colour[pack(colour)]!r} and for {name!r}')
    return ClassNames(tuple(name for name, _ in entries), path, by_colour=by_colour)


# Names of files that may hold class names, with their readers, in the order in which they are tried.
READERS: tuple[tuple[str, Callable[[Path], ClassNames | None]], ...] = (
    ('labelmap.txt', _read_labelmap),
    ('label_map.txt', _read_labelmap),
    ('class_dict.csv', _read_csv),
    ('_classes.csv', _read_csv),
    ('classes.csv', _read_csv),
    ('label_colors.txt', _read_lines),
    ('classes.txt', _read_lines),
    ('class_names.txt', _read_lines),
    ('codes.txt', _read_lines),
    ('label_names.txt', _read_lines),
    ('labels.txt', _read_lines),
    ('names.txt', _read_lines),
    ('id2label.json', _read_json),
    ('classes.json', _read_json),
    ('data.yaml', _read_yaml),
    ('dataset.yaml', _read_yaml),
    ('objectInfo150.txt', _read_ade),
)
