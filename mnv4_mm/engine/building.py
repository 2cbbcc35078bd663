"""The component of a run whose construction has failed."""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

from mnv4_mm.errors import UserError

# What classes raise that are called with unknown or unsuitable arguments.
MISTAKES = (TypeError, ValueError, KeyError, AttributeError, AssertionError)
LONGEST = 600  # characters of a message: mmengine's may contain whole configs
# mmengine goes on with where to look in its own documentation.
ADVICE = ('Please check', 'More details')


class BuildError(UserError):
    """A component could not be built. The original exception is its ``__cause__``.

    It is a mistake of a user because a config, or the checkpoint that carries it, comes from a user. ``apis.mistakes``
    names this file, and tells apart the configs of this package.

    Args:
        component: Keys of the component in the config, e.g. ``optim_wrapper``.
        error: The original exception.
    """

    def __init__(self, component: str, error: Exception) -> None:
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        text = ' '.join(str(message).split())
        for advice in ADVICE:
            text = text.partition(advice)[0].rstrip()
        text = textwrap.shorten(
            f'{component} cannot be built: {type(error).__name__}: {text}', LONGEST, placeholder=' ...'
        )
        super().__init__(f'{text} (MNV4_DEBUG=1 shows the traceback)')


@contextmanager
def building(component: str) -> Iterator[None]:
    """Name the component that is built in a ``with`` block. Of nested blocks, the innermost one names it.

    Args:
        component: Keys of the component in the config.

    Raises:
        BuildError: The block has raised one of ``MISTAKES``. A ``UserError`` is passed on.
    """
    try:
        yield
    except UserError:
        raise
    except MISTAKES as error:
        raise BuildError(component, error) from error
