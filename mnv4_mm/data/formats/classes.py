"""Checks of class names, which are the same for all formats."""

import unicodedata
from collections.abc import Sequence
from pathlib import Path

from mnv4_mm.data.findings import Finding

# Control characters, halves of surrogate pairs, and ends of lines and paragraphs.
UNPRINTABLE = ('Cc', 'Cs', 'Zl', 'Zp')


def check_names(names: Sequence[str], source: Path) -> list[Finding]:
    """Return findings for names that are empty, cannot be printed, occur twice, or differ in case or blanks only.

    Args:
        names: Class names in the order of labels.
        source: File that lists them.
    """
    findings = []
    first: dict[str, int] = {}
    similar: dict[str, str] = {}
    for i, name in enumerate(names):
        entry = f'class {i}'
        if not name.strip():
            findings.append(Finding('class-name', source, 'the name is empty', entry))
            continue
        if any(unicodedata.category(character) in UNPRINTABLE for character in name):
            findings.append(
                Finding('class-name', source, f'the name {name!r} has control characters or ends of lines', entry)
            )
        if name in first:
            findings.append(Finding('class-twice', source, f'classes {first[name]} and {i} are both {name!r}', entry))
            continue
        first[name] = i
        folded = ' '.join(name.split()).casefold()
        if folded in similar:
            findings.append(Finding('class-similar', source, f'{similar[folded]!r} and {name!r}', entry))
        else:
            similar[folded] = name
    return findings
