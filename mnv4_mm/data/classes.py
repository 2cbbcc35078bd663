"""Match the classes of a data set with those of a checkpoint, by name."""

from collections.abc import Sequence
from pathlib import Path

from mnv4_mm.data.formats.files import first
from mnv4_mm.errors import UserError


def class_order(root: Path, found: Sequence[str], required: Sequence[str]) -> list[int]:
    """Return the index of each class of a checkpoint among the classes of a data set.

    Args:
        root: Folder of the data set, for the message.
        found: Class names of the data set in the order of labels.
        required: Class names of the checkpoint in the order of labels.

    Raises:
        UserError: The data set and the checkpoint have different class names.
    """
    if sorted(found) == sorted(required):
        return [list(found).index(name) for name in required]
    if set(found) == set(required):
        name = next(name for name in [*found, *required] if found.count(name) != required.count(name))
        raise UserError(
            f'{root} has {found.count(name)} classes {name!r} and the checkpoint has {required.count(name)}: classes '
            'are matched by name, so each needs its own'
        )
    differences = [
        f'only {owner} has {first(map(repr, names), 5)}'
        for owner, names in (
            ('the data set', [name for name in found if name not in required]),
            ('the checkpoint', [name for name in required if name not in found]),
        )
        if names
    ]
    raise UserError(
        f'{root} has {len(found)} classes and the checkpoint has {len(required)}, and their names differ: '
        f'{"; ".join(differences)}. Classes are matched by name: use the data that the checkpoint was trained on'
    )
