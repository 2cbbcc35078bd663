"""The component of a run whose construction has failed."""

from collections.abc import Iterator
from contextlib import contextmanager

from mnv4_mm.errors import UserError

# What classes raise that are called with unknown or unsuitable arguments.
MISTAKES = (TypeError, ValueError, KeyError, AttributeError, AssertionError)


class BuildError(Exception):
    """A component could not be built. The original exception is its ``__cause__``.

    Args:
        component: Keys of the component in the config, e.g. ``optim_wrapper``.
        error: The original exception.
    """

    def __init__(self, component: str, error: Exception) -> None:
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        super().__init__(f'{component} cannot be built: {type(error).__name__}: {" ".join(str(message).split())}')


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
