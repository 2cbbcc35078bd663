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
    """Run ``tools/check_env.py`` in a new Python process, where nothing is imported yet; return its exit code."""
    return subprocess.run([sys.executable, str(SCRIPT)]).returncode  # noqa: S603
