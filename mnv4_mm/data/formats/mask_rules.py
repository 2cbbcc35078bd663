"""Decide which class each mask value or colour stands for, from the class names and the values of all masks.

docs/own_masks.md describes the rules. Where they do not decide, a UserError says what to write into ``masks.yaml`` or
the file of class names.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from mnv4_mm.data.formats.mask_classes import SETTINGS, ClassNames, MaskSettings, is_background, is_void
from mnv4_mm.data.formats.public_classes import (
    CAMVID_CLASSES,
    CITYSCAPES_CLASSES,
    CITYSCAPES_IDS,
    CITYSCAPES_UNUSED_IDS,
    VOC_CLASSES,
    are_camvid,
    are_voc,
)
from mnv4_mm.data.mask_values import MaskValues, pack, unpack
from mnv4_mm.errors import UserError

MAX_CLASSES = 254  # canonical masks have 8 bits: 0 is unlabelled, 255 is mmseg's ignore index
MAX_UNNAMED = 40  # more values than that are counts, shades or ids of objects
UNLABELLED = (255, 65535)  # usual values for pixels without a label, of 8 and 16 bits
MAX_LISTED = 12
MIN_FOR_RARE = 4  # fewest masks from which a value can be said to be rare
MIN_INSTANCES = 10  # fewest values that are taken for ids of instances if most of them are in one mask only
# Fewest values, and fewest largest values of a mask, for ids of instances that are numbered in each mask. Nested
# classes, such as an organ and its tumour, are numbered too, but are few.
MIN_NUMBERED, MIN_LARGEST, NUMBERED = 6, 3, 0.9
BLACK = 0
DOMINANT = 0.5  # share of a value from which it may be a background rather than a class
MIN_BACKGROUND = 0.3  # share of unlabelled pixels from which a background is likely meant
INSTANCE_ADVICE = (
    'Are they ids of instances? A mask has the value of its class for all objects of the class: export semantic masks'
)
JPEG_ADVICE = 'JPEG does not keep the values of pixels: save the masks as PNG, from the labelling tool'


class MaskSource(NamedTuple):
    """Names of the files and layout of the folders.

    Attributes:
        stems: Names of the images without folder and suffix.
        ending: Ending that mask names have and image names do not, e.g. ``_mask``. Empty if there is none.
        is_ade: True for the folders of ADE20K, in whose masks 0 is unlabelled.
        is_voc: True for the folders of Pascal VOC.
    """

    stems: tuple[str, ...]
    ending: str = ''
    is_ade: bool = False
    is_voc: bool = False


@dataclass
class Convention:
    """Meaning of the values or colours of masks.

    Attributes:
        format: Name of the format for messages, e.g. ``masks in colours``.
        classes: Class names in the order of labels.
        values: Maps each mask value to its label, the index of the class. Empty for masks in colours.
        colours: Maps each packed colour, ``0xRRGGBB``, to its label. Empty for masks of values.
        ignored: Mask values or packed colours without a label.
        notes: What was decided, one sentence each.
    """

    format: str
    classes: tuple[str, ...]
    values: dict[int, int] = field(default_factory=dict)
    colours: dict[int, int] = field(default_factory=dict)
    ignored: set[int] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


class _Occurring(NamedTuple):
    """Values or colours of all masks.

    Attributes:
        masks: Number of masks that each value occurs in.
        pixels: Number of pixels of each value.
        total: Number of masks.
        distinct: Largest number of values in one mask.
    """

    masks: dict[int, int]
    pixels: dict[int, int]
    total: int
    distinct: int

    @property
    def values(self) -> set[int]:
        return set(self.masks)

    def share(self, value: int) -> float:
        return self.pixels.get(value, 0) / max(1, sum(self.pixels.values()))


def decide(
    source: MaskSource, names: ClassNames | None, settings: MaskSettings, masks: Mapping[str, MaskValues]
) -> Convention:
    """Decide which class each mask value or colour means.

    Args:
        source: Names of files and folders.
        names: Class names. None if no file has them.
        settings: The user's decisions in ``masks.yaml``. Class names in the settings replace ``names``.
        masks: Decoded masks by path, including unreadable ones. Unreadable masks and JPEG files are not considered.

    Returns:
        The meaning of the values or colours.

    Raises:
        UserError: The values are ambiguous or cannot be classes, there are fewer than 2 or more than ``MAX_CLASSES``
            classes, no mask can be read, or most masks are JPEG files.
    """
    readable = {name: mask for name, mask in masks.items() if not mask.problem}
    if not readable:
        first = next(iter(masks), None)
        raise UserError(f'no mask can be read; {first}: {masks[first].problem}' if first else 'there are no masks')
    lossless = {name: mask for name, mask in readable.items() if not mask.is_jpeg}
    if 2 * len(lossless) < len(readable):
        first = next(name for name, mask in readable.items() if mask.is_jpeg)
        raise UserError(f'{len(readable) - len(lossless)} masks are JPEG files (first: {first}). {JPEG_ADVICE}')
    if settings.classes is not None:
        names = settings.classes
    if _are_colours(lossless, names, settings):
        convention = _decide_colours(_count(mask.colours() for mask in lossless.values()), names, settings, lossless)
    else:
        if names is not None:
            # A mask with more values than the classes, 0 and 255 is damaged whatever the values mean. The check leaves
            # it out later.
            possible = {name: mask for name, mask in lossless.items() if mask.distinct <= len(names.names) + 2}
            lossless = possible if 2 * len(possible) > len(lossless) else lossless
        convention = _decide_values(
            source, _count(mask.counts for mask in lossless.values()), names, settings, lossless
        )
    if len(convention.classes) < 2:
        found = ', '.join(map(repr, convention.classes)) or 'none'
        where = names.source if names and names.source else 'classes.txt'
        raise UserError(
            f'at least 2 classes are needed, got {found}: write a name for the rest of the image too, e.g. '
            f'background, into {where}'
        )
    if len(convention.classes) > MAX_CLASSES:
        raise UserError(f'there are {len(convention.classes)} classes; 8-bit masks can hold {MAX_CLASSES}')
    if settings.path:
        convention.notes.append(f'{settings.path.name} was heeded')
    return convention


def _count(masks: Iterable[Mapping[int, int]]) -> _Occurring:
    in_masks: dict[int, int] = {}
    pixels: dict[int, int] = {}
    total = distinct = 0
    for counts in masks:
        total += 1
        distinct = max(distinct, len(counts))
        for value, count in counts.items():
            in_masks[value] = in_masks.get(value, 0) + 1
            pixels[value] = pixels.get(value, 0) + count
    return _Occurring(dict(sorted(in_masks.items())), pixels, total, distinct)


def _are_colours(masks: Mapping[str, MaskValues], names: ClassNames | None, settings: MaskSettings) -> bool:
    """Return True if masks must be read as colours.

    ``settings.read`` decides if it is set. Otherwise masks are read as colours in two cases: any mask is in colours, or
    the file of class names states colours and either no other colours occur or the palettes of the masks differ.

    Raises:
        UserError: The palettes of the masks differ, and no file of class names states colours; or a mask in colours
            should be read as values.
    """
    coloured = next((name for name, mask in masks.items() if mask.is_coloured), None)
    if settings.read == 'values' and coloured is not None:
        raise UserError(
            f'{coloured} is in RGB colours, which are no values: save it with one channel, or write `read: colours` '
            f'into {SETTINGS} if colours are the classes'
        )
    if settings.read:
        return settings.read == 'colours'
    if coloured is not None:
        return True
    if names is not None and names.by_colour is not None:
        known = {*names.by_colour, BLACK, *(settings.ignored_colours or ())}
        occurring = set().union(*(mask.colours() for mask in masks.values()))
        # Greys of 0, 1, 2, ... are indices unless the file of classes lists them as colours.
        if occurring <= known and occurring != {BLACK}:
            return True
    first: dict[int, tuple[int, str]] = {}
    for name, mask in masks.items():
        for value, colour in mask.palette.items():
            known_colour, known_name = first.setdefault(value, (colour, name))
            if known_colour != colour:
                if names is not None and names.by_colour is not None:
                    return True
                raise UserError(
                    f'palettes differ: the index {value} is {unpack(known_colour)} in {known_name} and '
                    f'{unpack(colour)} in {name}. If colours are the classes, write a line name:red,green,blue:: for '
                    f'each into labelmap.txt; if indices are, write `read: values` into {SETTINGS}'
                )
    return False


def _decide_colours(
    found: _Occurring, names: ClassNames | None, settings: MaskSettings, masks: Mapping[str, MaskValues]
) -> Convention:
    if names is None or names.by_colour is None:
        raise UserError(_ask_for_colours(found, names, masks))
    convention = Convention('masks in colours', ())
    classes: list[str] = []
    for colour, name in names.by_colour.items():
        if is_void(name) or colour in (settings.ignored_colours or ()):
            convention.ignored.add(colour)
            continue
        if name not in classes:
            classes.append(name)
        convention.colours[colour] = classes.index(name)
    convention.ignored |= set(settings.ignored_colours or ())
    if BLACK not in names.by_colour and BLACK in found.values and BLACK not in convention.ignored:
        if len(classes) == 1:
            classes.insert(0, 'background')
            convention.colours = {colour: label + 1 for colour, label in convention.colours.items()} | {BLACK: 0}
            convention.notes.append(f'{_name(names)} does not list black: it is the class background')
        else:
            convention.ignored.add(BLACK)
            convention.notes.append(
                f'black is unlabelled ({_percent(found.share(BLACK))} of all pixels): neither trained on nor measured. '
                f'If it is the background, write background:0,0,0:: into {names.source}'
            )
    known = {*convention.colours, *convention.ignored}
    if not found.values <= known and {_swap_red_and_blue(colour) for colour in found.values} <= known:
        raise UserError(
            f'the colours of the masks are those of {_name(names)} with red and blue swapped, as OpenCV saves an RGB '
            'array: convert the masks (cv2.cvtColor(mask, cv2.COLOR_RGB2BGR) before cv2.imwrite), or swap them in '
            'the file'
        )
    convention.classes = tuple(classes)
    convention.notes.insert(0, f'{len(convention.colours)} colours of {_name(names)} are the classes')
    return convention


def _swap_red_and_blue(colour: int) -> int:
    return pack(unpack(colour)[::-1])


def _ask_for_colours(found: _Occurring, names: ClassNames | None, masks: Mapping[str, MaskValues]) -> str:
    name, mask = next(((n, m) for n, m in masks.items() if m.is_coloured), next(iter(masks.items())))
    if mask.distinct > 256:
        return (
            f'{name} has {mask.distinct} colours: it is a photograph, or a mask that was compressed or smoothed. '
            'A mask has one value or colour for each class'
        )
    common = sorted(found.pixels, key=lambda colour: -found.pixels[colour])[:MAX_LISTED]
    lines = ', '.join('name:{},{},{}::'.format(*unpack(colour)) for colour in common)
    more = f' and {len(found.pixels) - len(common)} more' if len(found.pixels) > len(common) else ''
    has_names = f'; {names.source} has names without colours' if names and names.source else ''
    return (
        f'masks are in colours (first: {name}), and no file says which colour is which class{has_names}: write '
        f'labelmap.txt with a line for each, or save masks with one channel. The colours are {lines}{more}'
    )


def _decide_values(
    source: MaskSource,
    found: _Occurring,
    names: ClassNames | None,
    settings: MaskSettings,
    masks: Mapping[str, MaskValues],
) -> Convention:
    known = _public(source, found, names, settings)
    if known is not None:
        return known
    ignored = set(settings.ignored) if settings.ignored is not None else _unlabelled(found.values, names)
    values = sorted(found.values - ignored)
    if settings.ignored is None and values == [0, 1] and len(ignored) == 1:
        _check_one_convention(masks, max(ignored))
    if not values:
        return Convention('masks', names.names if names else ('background', 'foreground'), {0: 0}, ignored=ignored)
    is_stated = settings.ignored is not None
    if names is not None and names.by_value is not None:
        convention = _explicit(names, ignored)
    elif settings.first_class is not None:
        convention = _counted(source, found, names, ignored, settings.first_class)
    elif names is None:
        convention = _unnamed(found, ignored, is_stated, masks)
    else:
        convention = _named(source, found, names, ignored, is_stated, values, masks)
    top = max(convention.ignored & set(UNLABELLED), default=0)
    if not is_stated and found.share(top) >= MIN_BACKGROUND and top:
        convention.notes.append(
            f'{top} is {_percent(found.share(top))} of all pixels, which are neither trained on nor measured. If it is '
            f'a class, write a name for each value: `classes: {{{values[0]}: name, ..., {top}: name}}` in {SETTINGS}'
        )
    return convention


def _check_one_convention(masks: Mapping[str, MaskValues], top: int) -> None:
    """Check that masks of 0 and 1 are not mixed with masks of 0 and 255, which may mean the same.

    Raises:
        UserError: No mask has both 1 and ``top``.
    """
    ones = [name for name, mask in masks.items() if 1 in mask.counts]
    tops = [name for name, mask in masks.items() if top in mask.counts]
    if not set(ones) & set(tops):
        raise UserError(
            f'{len(ones)} masks have the value 1 and no {top} (first: {ones[0]}); {len(tops)} have {top} and no 1 '
            f'(first: {tops[0]}). If both mean the object, save all alike; if {top} is unlabelled, '
            f'write `ignore: [{top}]` into {SETTINGS}'
        )


def _unlabelled(values: set[int], names: ClassNames | None) -> set[int]:
    """Return the usual value for unlabelled pixels, if it occurs. 0 and 255 alone are a binary mask."""
    if names is not None and names.by_value is not None:
        return {value for value in UNLABELLED if value in values and value not in names.by_value}
    top = max(values)
    if top not in UNLABELLED or values <= {0, top}:
        return set()
    return {top}


def _public(
    source: MaskSource, found: _Occurring, names: ClassNames | None, settings: MaskSettings
) -> Convention | None:
    """Return the convention of the public data set that file names and values match. None if they match none."""
    if settings.path is not None or (names is not None and names.source is not None):
        return None
    values = found.values
    ending = source.ending.lower()
    if ending.endswith('labeltrainids') and values <= {*range(19), 255}:
        return _consecutive('Cityscapes, labelTrainIds', CITYSCAPES_CLASSES, 0, {255})
    if ending.endswith('labelids') and values <= set(range(34)):
        convention = Convention('Cityscapes, labelIds', CITYSCAPES_CLASSES)
        convention.values = {value: label for label, value in enumerate(CITYSCAPES_IDS)}
        convention.ignored = set(CITYSCAPES_UNUSED_IDS)
        convention.notes.append('the 19 classes that Cityscapes evaluates are trained on; its other ids are unlabelled')
        return convention
    if are_camvid(source.stems) and values <= set(range(12)):
        return _consecutive('CamVid with 11 classes', CAMVID_CLASSES, 0, {11})
    if source.is_voc and are_voc(source.stems) and values <= {*range(21), 255}:
        return _consecutive('Pascal VOC', VOC_CLASSES, 0, {255})
    return None


def _consecutive(name: str, classes: tuple[str, ...], first: int, ignored: set[int]) -> Convention:
    """Return the convention in which consecutive values from ``first`` are the classes.

    Names such as ``void`` are not classes, and their values have no label.
    """
    convention = Convention(name, tuple(part for part in classes if not is_void(part)))
    label = 0
    for value, part in enumerate(classes, first):
        if is_void(part) or value in ignored:
            ignored = ignored | {value}
        else:
            convention.values[value] = label
            label += 1
    convention.ignored = set(ignored)
    last = first + len(classes) - 1
    convention.notes.append(f'mask values {first} to {last} are classes{_describe_ignored(ignored)}')
    return convention


def _describe_ignored(ignored: set[int]) -> str:
    if not ignored:
        return ''
    listed = ', '.join(str(value) for value in sorted(ignored)[:MAX_LISTED])
    return f' ({listed} {"is" if len(ignored) == 1 else "are"} unlabelled)'


def _explicit(names: ClassNames, ignored: set[int]) -> Convention:
    """Return the convention of a file that names each value."""
    assert names.by_value is not None
    convention = Convention('masks', ())
    classes: list[str] = []
    for value, name in names.by_value.items():
        if is_void(name) or value in ignored:
            ignored = ignored | {value}
            continue
        if name not in classes:
            classes.append(name)
        convention.values[value] = classes.index(name)
    convention.classes, convention.ignored = tuple(classes), set(ignored)
    listed = ', '.join(f'{value} {name}' for value, name in list(names.by_value.items())[:MAX_LISTED])
    more = f' and {len(names.by_value) - MAX_LISTED} more' if len(names.by_value) > MAX_LISTED else ''
    convention.notes.append(f'mask values are those of {_name(names)}: {listed}{more}{_describe_ignored(ignored)}')
    return convention


def _counted(
    source: MaskSource, found: _Occurring, names: ClassNames | None, ignored: set[int], first: int
) -> Convention:
    """Return the convention in which ``first``, as stated by the user, is the value of the first class."""
    below = {value for value in found.values if value < first}
    classes = names.names if names else tuple(f'class_{v}' for v in range(first, max(found.values - ignored) + 1))
    return _consecutive('masks', classes, first, ignored | below)


def _unnamed(found: _Occurring, ignored: set[int], is_stated: bool, masks: Mapping[str, MaskValues]) -> Convention:
    """Name classes by their values: each value that occurs is a class."""
    values = sorted(found.values - ignored)
    if len(values) > MAX_UNNAMED:
        name = max(masks, key=lambda name: masks[name].distinct)
        raise UserError(
            f'masks have {len(values)} values ({_listed(values)}), the most in {name}, and there is no classes.txt: '
            'that is too many for classes without names. Masks that were compressed, smoothed or resized have values '
            'in between, and masks of instances a value for each object; write the names into classes.txt if they are '
            'classes'
        )
    once = [value for value in values if found.masks[value] == 1]
    is_rare = len(values) >= MIN_INSTANCES and 2 * len(once) > len(values)
    if found.total >= MIN_FOR_RARE and (is_rare or _are_numbered(values, masks)):
        how = f'of which {len(once)} are in one mask only'
        if not is_rare:
            how = 'in most masks 1, 2, ... without gaps up to a number that differs'
        raise UserError(
            f'masks have {len(values)} values ({_listed(values)}), {how}, which suggests ids of instances, and there '
            f'is no classes.txt. {INSTANCE_ADVICE}, or write the names into classes.txt if they are classes'
        )
    binary = len(values) == 2 and values[0] == 0 and values[1] in (1, *UNLABELLED)
    if len(values) == 1:
        raise UserError(
            f'all labelled pixels of all masks have the value {values[0]}: segmentation needs at least two classes; '
            'check that the masks show the others, or the background'
        )
    # Values that are spread over the whole range, as 0, 128 and 255, are shades, of which the last may be a class too.
    top = max(ignored, default=0)
    if not is_stated and found.share(top) >= MIN_BACKGROUND and ignored and values[-1] >= 2 * len(values):
        raise UserError(_ask_unlabelled(None, values, top, found))
    classes = ('background', 'foreground') if binary else tuple(f'class_{value}' for value in values)
    convention = Convention('masks', classes, {value: label for label, value in enumerate(values)}, ignored=ignored)
    named = ', '.join(f'{value} {name}' for value, name in zip(values[:MAX_LISTED], classes, strict=False))
    convention.notes.append(
        f'there is no file with class names, so classes are named by the mask values: {named}'
        f'{", ..." if len(values) > MAX_LISTED else ""}{_describe_ignored(ignored)}; '
        'write names into classes.txt, one a line, in the order of values'
    )
    return convention


def _are_numbered(values: list[int], masks: Mapping[str, MaskValues]) -> bool:
    """Return True if most masks have the values 1, 2, ... without gaps, up to numbers that differ."""
    objects = [set(values) & mask.counts.keys() - {0} for mask in masks.values()]
    largest = [max(ids) for ids in objects if ids and max(ids) > 1]  # 1 alone has no gaps in any case
    numbered = [max(ids) for ids in objects if len(ids) == max(ids, default=0) > 1]
    return (
        len(values) >= MIN_NUMBERED and len(set(numbered)) >= MIN_LARGEST and len(numbered) >= NUMBERED * len(largest)
    )


def _named(
    source: MaskSource,
    found: _Occurring,
    names: ClassNames,
    ignored: set[int],
    is_stated: bool,
    values: list[int],
    masks: Mapping[str, MaskValues],
) -> Convention:
    """Return the convention for a list of names, by their number and the values that occur."""
    count = len(names.names)
    where = _name(names)
    if count == 1:
        return _one_class(names, found, ignored, is_stated, values)
    # A value above the number of names that occurs in few masks is a mistake in those masks.
    regular = [value for value in values if value <= count]
    strays = [value for value in values if value > count]
    if strays and 2 * max(found.masks[value] for value in strays) >= found.total:
        return _in_order(names, values, ignored, is_stated, found)
    if ignored and not is_stated and regular == [0]:  # 0 and 255 are a binary mask, and the strays mistakes
        raise UserError(_ask_unlabelled(names, values, max(ignored), found))
    straying = sum(not mask.counts.keys().isdisjoint(strays) for mask in masks.values())
    if len(strays) > count and 2 * straying >= found.total:
        raise UserError(
            f'masks have {len(values)} values ({_listed(values)}), {where} has {count} names, and {straying} of '
            f'{found.total} masks have values over {count}. {INSTANCE_ADVICE}'
        )
    top = max(regular, default=0)
    zero, has_ignored = 0 in regular, bool(ignored)
    background_first = is_background(names.names[0])
    if top < count and background_first:
        return _consecutive('masks', names.names, 0, ignored)
    if top < count and has_ignored and zero:
        # Instead, 0 may be a background without a name, as in Pascal VOC, and the last classes occur in no mask.
        if top < count - 1 or found.share(0) >= DOMINANT:
            raise UserError(
                f'masks have the values 0 to {top}{_describe_ignored(ignored)}, and {where} has {count} names; 0 is '
                f'{_percent(found.share(0))} of all pixels: is it {names.names[0]}, or a background without a name? '
                f'Write `first_class: 0` into {SETTINGS} in the data folder if it is {names.names[0]}; if not, write '
                f'background as the first line of {where}'
            )
        return _consecutive('masks', names.names, 0, ignored)
    # If the value of the last class occurs in next to no mask, it may be a mistake there, and 0 be the first class.
    is_rare = (
        not source.is_ade and found.total >= MIN_FOR_RARE and found.masks.get(count, 0) <= max(1, 0.01 * found.total)
    )
    if top == count and zero and (background_first or is_rare):
        raise UserError(
            f'masks have the values 0 to {count} and {where} has {count} names, of which the first is '
            f'{names.names[0]}; {count} occurs in {found.masks[count]} of {found.total} masks: is 0 the first class, '
            f'or unlabelled? {_ask_first()}'
        )
    if top == count and zero and has_ignored:
        # Unlabelled pixels already have another value, so 0 is the background class.
        convention = _consecutive('masks', ('background', *names.names), 0, ignored)
        convention.notes.append(f'{where} has no name for the value 0: it is the class background')
        return convention
    if top == count:
        return _from_one(names, found, ignored)
    if source.is_ade and regular != list(range(count)):
        return _from_one(names, found, ignored)
    if not source.is_ade and zero:
        return _consecutive('masks', names.names, 0, ignored)
    raise UserError(
        f'masks have the values {_listed(regular)} and {where} has {count} names: is the first name value 0 or '
        f'value 1? {_ask_first()}'
    )


def _ask_first() -> str:
    return f'Write `first_class: 0` or `first_class: 1` into {SETTINGS} in the data folder'


def _from_one(names: ClassNames, found: _Occurring, ignored: set[int]) -> Convention:
    """Return the convention in which 0 is unlabelled and 1 is the first class."""
    convention = _consecutive('masks', names.names, 1, ignored | {0})
    if found.share(0) >= MIN_BACKGROUND:
        convention.notes.append(
            f'0 is {_percent(found.share(0))} of all pixels, which are neither trained on nor measured. If it is the '
            f'background, write background into {_name(names)} as its first line'
        )
    return convention


def _ask_unlabelled(names: ClassNames | None, values: list[int], top: int, found: _Occurring) -> str:
    """Return for a message that 255 (``top``) may be a class or unlabelled, and what to write."""
    shown = [f'{value} ({_percent(found.share(value))} of all pixels)' for value in [*values[:MAX_LISTED], top]]
    count = 'no file names the classes'
    if names is not None:
        count = f'{_name(names)} has {len(names.names)} {"name" if len(names.names) == 1 else "names"}'
    return (
        f'masks have the values {", ".join(shown[:-1])} and {shown[-1]}, and {count}: is {top} a class, or unlabelled? '
        f'Write `ignore: [{top}]` into {SETTINGS} if it is unlabelled. If it is a class, write a name for each value, '
        f'`classes: {{{values[0]}: name, ..., {top}: name}}`; values of smoothed edges go into `ignore: [...]`'
    )


def _one_class(
    names: ClassNames, found: _Occurring, ignored: set[int], is_stated: bool, values: list[int]
) -> Convention:
    """Return the convention for a single name: one value is this class, and 0 is the background."""
    name = names.names[0]
    if is_background(name) or is_void(name):
        raise UserError(f'{_name(names)} has {name} alone: it must also name at least one class')
    objects = [value for value in values if value]
    if not objects:
        raise UserError(f'no pixel of any mask is {name}: all have the value 0{_describe_ignored(ignored)}')
    value = max(objects, key=lambda value: found.masks[value])
    # Another value that occurs in few masks is a mistake in those masks.
    if any(2 * found.masks[other] >= found.masks[value] for other in objects if other != value):
        return _in_order(names, values, ignored, is_stated, found)
    if ignored and not is_stated and value != 1:
        raise UserError(_ask_unlabelled(names, values, max(ignored), found))
    convention = Convention('masks', ('background', name), {0: 0, value: 1}, ignored=ignored)
    convention.notes.append(
        f'mask value {value} is {name}, 0 the class background{_describe_ignored(ignored)}; {_name(names)} has no name '
        'for what is not the object'
    )
    return convention


def _in_order(
    names: ClassNames, values: list[int], ignored: set[int], is_stated: bool, found: _Occurring
) -> Convention:
    """Assign values that are not consecutive to the names in order; there must be as many of both.

    255 is a class if there is a name for it. If not, it is unlabelled only if the user says so (``is_stated``).
    """
    count = len(names.names)
    if ignored and not is_stated:
        if len(values) + len(ignored) == count:
            values, ignored = sorted({*values, *ignored}), set()
        elif len(values) == count:
            raise UserError(_ask_unlabelled(names, values, max(ignored), found))
    if len(values) != count:
        besides = f' besides {max(ignored)}' if ignored else ''
        advice = f'Write a name for each value: `classes: {{{values[0]}: name, ...}}` in {SETTINGS}'
        # Ids of instances are numbered without many gaps. Smoothed masks of 0 and 255 have values up to 255.
        if len(values) > count and not ignored and 2 * len(values) > values[-1]:
            advice = f'{INSTANCE_ADVICE}. {advice} if they are classes'
        elif found.distinct > 2 * count + 2:
            advice = (
                'Masks that were compressed, smoothed or resized have values in between: save them as PNG, and resize '
                'them by nearest neighbour'
            )
        raise UserError(
            f'masks have {len(values)} values ({_listed(values)}){besides}, but {_name(names)} has {count} '
            f'{"name" if count == 1 else "names"}. {advice}'
        )
    convention = Convention('masks', (), ignored=set(ignored))
    kept = [(value, name) for value, name in zip(values, names.names, strict=True) if not is_void(name)]
    convention.ignored |= set(values) - {value for value, _ in kept}
    convention.classes = tuple(name for _, name in kept)
    convention.values = {value: label for label, (value, _) in enumerate(kept)}
    assigned = ', '.join(f'{value} {name}' for value, name in kept[:MAX_LISTED])
    convention.notes.append(
        f'mask values are not consecutive; the names of {_name(names)} belong to them in their order: {assigned}'
        f'{", ..." if len(kept) > MAX_LISTED else ""}{_describe_ignored(convention.ignored)}'
    )
    return convention


def _name(names: ClassNames) -> str:
    return names.source.name if names.source else "the public data set's list"


def _listed(values: list[int]) -> str:
    if len(values) > 3 and values == list(range(values[0], values[-1] + 1)):
        return f'{values[0]} to {values[-1]}'
    more = f', ... (up to {values[-1]})' if len(values) > MAX_LISTED else ''
    return ', '.join(map(str, values[:MAX_LISTED])) + more


def _percent(share: float) -> str:
    return f'{100 * share:.0f} %' if share >= 0.01 else 'under 1 %'
