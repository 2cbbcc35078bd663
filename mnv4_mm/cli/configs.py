"""The command that lists and copies shipped configs."""

import argparse
import ast
from pathlib import Path

from mnv4_mm.cli.arguments import Parser
from mnv4_mm.config.index import config_index
from mnv4_mm.config.source import check_config_file
from mnv4_mm.errors import UserError
from mnv4_mm.paths import check_output_file


def add_configs(parser: Parser) -> None:
    parser.epilog = 'Without a command the shipped configs are listed.'
    parser.set_defaults(call=list_configs)
    commands = parser.add_subparsers(title='commands', metavar='COMMAND')
    copy = commands.add_parser('copy', help='write a config with all its values into one file, to be edited')
    copy.add_argument('name', help='name of a shipped config, or path')
    copy.add_argument('--out', type=Path, metavar='FILE', help='default: NAME.py here')
    copy.set_defaults(call=copy_config, parser=copy)


def list_configs(args: argparse.Namespace) -> None:
    """Run ``mnv4 configs``: print the names of the shipped configs with the first line of their docstrings."""
    index = config_index()
    width = max(map(len, index))
    for name, path in index.items():
        summary = (ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or '').partition('\n')[0]
        print(f'{name:<{width}}  {summary}')


def copy_config(args: argparse.Namespace) -> None:
    """Run ``mnv4 configs copy``: write a standalone copy of a config to a new file, and print the path of the file.

    Raises:
        UserError: There is no such config, or the file exists, does not end in ``.py`` or cannot be written.
    """
    source = check_config_file(args.name)
    out = args.out or Path(f'{source.stem}.py')
    if out.suffix != '.py':
        raise UserError(f'--out {out}: a config is a Python file; name one that ends in .py')
    if out.exists():
        raise UserError(f'{out} exists: name another file by --out')
    check_output_file('--out', out)

    from mnv4_mm.config.standalone import standalone

    text = standalone(source)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding='utf-8')
    print(out)
