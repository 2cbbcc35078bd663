"""Call a command of the package, or report that the package is not installed in this Python."""

import sys
from collections.abc import Callable, Sequence


def command(name: str) -> Callable[..., int]:
    """Return the ``main`` function of a tool: ``mnv4 NAME`` with the arguments of the process, or those it is given."""

    def main(argv: Sequence[str] | None = None) -> int:
        try:
            from mnv4_mm.cli import main as mnv4
        except ImportError as error:
            print(
                f'error: {error} in {sys.executable}: activate the environment that `make` built '
                '(`. .venv/bin/activate`), or ask `python tools/check_env.py` what is missing',
                file=sys.stderr,
            )
            return 2
        return mnv4([name, *(sys.argv[1:] if argv is None else argv)])

    return main
