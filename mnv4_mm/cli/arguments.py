"""Parsing of arguments."""

import argparse
from typing import NoReturn

from mnv4_mm.config.index import near_names
from mnv4_mm.errors import UserError


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like those of every other mistake."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f'{message} (`{self.prog} --help` lists the options)')

    def refuse(self, arguments: list[str]) -> NoReturn:
        """Report arguments that are not known.

        Raises:
            UserError: Always; similar options are listed.
        """
        if not arguments[0].startswith('-'):
            self.error(f'unexpected argument {arguments[0]!r}')
        options = [name for name in self._option_string_actions if name.startswith('--') and name != '--local_rank']
        option = arguments[0].partition('=')[0]
        raise UserError(f'no option {option} of `{self.prog}`{near_names(option, options)}')
