"""Checks of class names, which are the same for all formats."""

import unicodedata
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from mnv4_mm.data.findings import Finding
from mnv4_mm.data.formats.files import first

# Control characters, halves of surrogate pairs, and ends of lines and paragraphs.
UNPRINTABLE = ('Cc', 'Cs', 'Zl', 'Zp')


def composed(name: str) -> str:
    """Return a name in Unicode normalisation form NFC, in which an accent and its letter are one character.

    macOS writes names with separate characters (NFD), which look the same but compare as different.
    """
    return unicodedata.normalize('NFC', name)


def note_composed(names: Iterable[str], notes: list[str]) -> None:
    """Add a note that lists the class names that ``composed`` changes. No note is added if all names are NFC already.

    Args:
        names: Class names as written in the files.
        notes: Notes on the data set, extended in place.
    """
    changed = sorted({composed(name) for name in names if composed(name) != name})
    if changed:
        notes.append(f'accents of class names are composed (Unicode NFC): {first(changed)}')


def check_names(names: Sequence[str], source: Path) -> list[Finding]:
    """Check class names for empty and repeated names, control characters, and names that are almost the same.

    Two names are almost the same if they differ only in case or whitespace.

    Args:
        names: Class names in the order of labels.
        source: File that lists the names, or the folder of the data set if no file does.

    Returns:
        One finding for each problem; an empty list if there are none.
    """
    findings = []
    positions: dict[str, int] = {}
    similar: dict[str, str] = {}
    for i, name in enumerate(names):
        entry = f'class {i}'
        if not name.strip():
            findings.append(Finding('class-name', source, 'the name is empty', entry))
            continue
        if any(unicodedata.category(character) in UNPRINTABLE for character in name):
            findings.append(
                Finding('class-name', source, f'the name {name!r} has control characters or line breaks', entry)
            )
        if name in positions:
            findings.append(
                Finding('class-twice', source, f'classes {positions[name]} and {i} are both {name!r}', entry)
            )
            continue
        positions[name] = i
        folded = ' '.join(name.split()).casefold()
        if folded in similar:
            findings.append(Finding('class-similar', source, f'{similar[folded]!r} and {name!r}', entry))
        else:
            similar[folded] = name
    return findings


def join_unlisted(findings: Sequence[Finding], used: set[int], listed: Collection[int], source: Path) -> list[Finding]:
    """Replace findings on unlisted classes by one finding if labels and classes are counted from different numbers.

    That is the case if one is counted from 0 and the other from 1: after 1 is added or subtracted, all ids of the
    labels are in the list.

    Args:
        findings: Findings on the labels.
        used: Class ids of the labels.
        listed: Ids in the list of classes.
        source: File that lists the classes, or the folder of the data set if no file does.

    Returns:
        The findings, unchanged if both are counted from the same number.
    """
    for start, change in ((0, -1), (1, 1)):
        is_shifted = used and not used <= set(listed) and {number + change for number in used} <= set(listed)
        if is_shifted and min(listed) == start:
            problem = (
                f'labels, with the classes {first(map(str, sorted(used)), 5)}, seem to be counted from {1 - start}, '
                f'but the list of classes ({first(map(str, sorted(listed)), 5)}) is counted from {start}'
            )
            remedy = 'subtract 1 from the class of each label' if change < 0 else 'add 1 to the class of each label'
            kept = [finding for finding in findings if finding.kind != 'class-unlisted']
            return [*kept, Finding('class-ids-shifted', source, f'{problem}: {remedy}')]
    return list(findings)
