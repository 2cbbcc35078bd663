"""The command that checks the environment."""

import argparse
import subprocess
import sys

from mnv4_mm.cli.arguments import Parser
from mnv4_mm.config.index import CHECKOUT, PACKAGE

# The script imports nothing of the package, because the package may be broken. A wheel contains a copy.
SCRIPT = (CHECKOUT or PACKAGE) / 'tools' / 'check_env.py'


def add_env(parser: Parser) -> None:
    parser.epilog = 'Exit code 1 if something has to be repaired.'
    parser.set_defaults(call=env)


def env(args: argparse.Namespace) -> int:
    """Run ``mnv4 env``: run ``tools/check_env.py`` in a new Python process, in which nothing has been imported yet.

    Returns:
        Exit code of the script: 1 if something has to be repaired, else 0.
    """
    return subprocess.run([sys.executable, str(SCRIPT)]).returncode  # noqa: S603
