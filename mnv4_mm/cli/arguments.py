"""Parsing of arguments."""

import argparse
from pathlib import Path
from typing import Any, NoReturn

from mnv4_mm.config.index import near_names
from mnv4_mm.errors import UserError
from mnv4_mm.paths import EMPTY


class Parser(argparse.ArgumentParser):
    """Argument parser that reports errors as ``UserError``, in one line, and refuses empty strings."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register('type', None, _text)
        self.register('type', Path, _path)

    def add_subparsers(self, **kwargs: Any) -> Any:
        commands = super().add_subparsers(**kwargs)
        commands.type = str  # not `_text`, because the parser of the command checks its own arguments
        return commands

    def error(self, message: str) -> NoReturn:
        raise UserError(f'{message} (`{self.prog} --help` lists the options)')

    def refuse(self, arguments: list[str]) -> NoReturn:
        """Report unknown arguments as an error.

        Args:
            arguments: The unknown arguments; the first one is reported.

        Raises:
            UserError: Always. If the first argument is an option, the message lists similar options.
        """
        if not arguments[0].startswith('-'):
            self.error(f'unexpected argument {arguments[0]!r}')
        options = [name for name in self._option_string_actions if name.startswith('--') and name != '--local_rank']
        option = arguments[0].partition('=')[0]
        raise UserError(f'no option {option} of `{self.prog}`{near_names(option, options)}')


def _text(value: str) -> str:
    if not value:
        raise argparse.ArgumentTypeError(EMPTY)
    return value


def _path(value: str) -> Path:
    return Path(_text(value))  # Path('') is the current folder
