"""README and docs name only what exists: links and anchors, commands and options, modules, files, configs, messages."""

import argparse
import ast
import functools
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mnv4_mm.cli import COMMANDS
from mnv4_mm.cli.arguments import Parser

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / name for name in ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md')] + sorted(
    (ROOT / 'docs').glob('*.md')
)
# Changes name what there was, too.
CURRENT = [page for page in PAGES if page.name != 'CHANGELOG.md']
FENCE = re.compile(r'^```.*?^```', re.M | re.S)
INDENTED = re.compile(r'(?:^|\n)\n((?: {4}.*\n|\n(?= {4}))+)')
CODE_SPAN = re.compile(r'`([^`\n]+(?:\n[^`\n]+)?)`')
# Options in the docs that belong to other programs: pip, venv, torchrun, srun, python, git.
FOREIGN = re.compile(r'\b(pip|torchrun|srun|git|sudo|pre-commit|pytest|make|tensorboard|zensical)\b')

# Options of pip and of torchrun that stand without their command.
FOREIGN_OPTIONS = {
    '--no-deps', '--nproc_per_node', '--nnodes', '--rdzv-endpoint', '--rdzv-id', '--local-addr', '--max-restarts',
}  # fmt: skip


def relative(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def without_code(text: str) -> str:
    return CODE_SPAN.sub('', INDENTED.sub('\n', FENCE.sub('', text)))


def code(page: Path) -> Iterator[str]:
    """Lines of code blocks, continued lines joined, and code spans of a page."""
    text = page.read_text(encoding='utf-8')
    blocks = [block.group() for block in FENCE.finditer(text)] + INDENTED.findall(FENCE.sub('', text))
    for block in blocks:
        yield from re.sub(r'\\\n\s*', '', block).splitlines()
    for span in CODE_SPAN.findall(INDENTED.sub('\n\n', FENCE.sub('', text))):
        yield ' '.join(span.split())


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub and Python-Markdown make them."""
    headings = re.findall(r'^#+ (.+)$', FENCE.sub('', page.read_text(encoding='utf-8')), re.M)
    return {re.sub(r'[^\w\- ]', '', heading.lower()).strip().replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('page', PAGES, ids=relative)
def test_links(page):
    targets = re.findall(r'\]\(([^)\s]+)\)', without_code(page.read_text(encoding='utf-8')))
    for target in targets:
        if re.match(r'https?:', target):
            continue
        path, _, anchor = target.partition('#')
        linked = (page.parent / path).resolve() if path else page
        assert linked.is_file(), f'{target} does not exist'
        # The site has docs/ only.
        assert page.parent.name != 'docs' or linked.is_relative_to(page.parent), f'{target} is not in the site'
        assert not anchor or anchor in anchors(linked), f'{target}: no such heading'


def test_site_has_all_pages():
    navigation = (ROOT / 'mkdocs.yml').read_text().partition('\nnav:')[2]
    pages = re.findall(r': ([\w-]+\.md)$', navigation, re.M)
    assert sorted(pages) == sorted(page.name for page in (ROOT / 'docs').glob('*.md'))


@functools.cache
def commands() -> dict[str, list[argparse.Action]]:
    """Arguments of each command, those of its own commands (``configs copy``) included."""
    found = {}
    for name, (_, add) in COMMANDS.items():
        parser = Parser(prog=name)
        add(parser)
        nested = (
            action.choices.values() for action in parser._actions if isinstance(action, argparse._SubParsersAction)
        )
        parsers = [parser, *itertools.chain.from_iterable(nested)]
        found[name] = [action for one in parsers for action in one._actions]
    return found


def options(command: str) -> set[str]:
    return {option for action in commands()[command] for option in action.option_strings}


def scripts() -> dict[str, str]:
    """The script of each command, by docs/cli.md."""
    rows = re.findall(r'^\| \[`mnv4 (\w+)`\]\(#[\w-]+\) \| .* \| (?:`(tools/\w+\.py)`)? ?\|$', read_cli(), re.M)
    return {script: command for command, script in rows if script}


def read_cli() -> str:
    return (ROOT / 'docs/cli.md').read_text(encoding='utf-8')


def named_options(arguments: str) -> list[str]:
    return re.findall(r'(?<![\w-])--[a-z][\w-]*', arguments)


@pytest.mark.parametrize('page', CURRENT, ids=relative)
def test_commands(page):
    checked = {**scripts(), **{f'mnv4 {name}': name for name in commands()}}
    for line in code(page):
        line = line.partition(' #')[0]
        for match in re.finditer(r'\bmnv4 ([a-z]+)|\b(tools/\w+\.py)', line):
            call, script = match.group(), match.group(2)
            assert not script or (ROOT / script).is_file(), f'{line!r}: no {script}'
            if script and script not in checked:
                continue  # tools/install.py, which stands alone
            assert call in checked, f'{line!r}: no command {call}'
            arguments = line[match.end() :].partition(' mnv4 ')[0]
            unknown = set(named_options(arguments)) - options(checked[call])
            assert not unknown, f'{line!r}: {checked[call]} has no {", ".join(unknown)}'


@pytest.mark.parametrize('page', CURRENT, ids=relative)
def test_options_alone(page):
    """An option in the text, without its command, is an option of some command."""
    every = set().union(*map(options, commands())) | {'--base', '--here', '--venv'}
    for span in code(page):
        if span.startswith('--') and not FOREIGN.search(span):
            unknown = set(named_options(span)) - every - FOREIGN_OPTIONS
            assert not unknown, f'{span!r}: no command has {", ".join(unknown)}'


def test_every_command_is_described():
    sections = re.findall(r'^## mnv4 (\w+)$', read_cli(), re.M)
    assert sorted(sections) == sorted(commands())


@pytest.mark.parametrize('command', COMMANDS)
def test_every_option_is_described(command):
    section = read_cli().partition(f'## mnv4 {command}\n')[2].partition('\n## ')[0]
    for action in commands()[command]:
        shown = action.option_strings and action.help != argparse.SUPPRESS and '--help' not in action.option_strings
        if command == 'search' and set(action.option_strings) & options('train'):
            continue  # of `mnv4 search train`, which is described as `mnv4 train`
        # Of a flag that can be turned on and off, one form is enough.
        assert not shown or set(action.option_strings) & set(named_options(section)), action.option_strings


@pytest.mark.parametrize('page', CURRENT, ids=relative)
def test_modules(page):
    for line in code(page):
        for name in re.findall(r'(?<![\w/.])mnv4_mm(?:\.\w+)+(?![\w/]|-\d|\.whl)', line):
            assert _exists(name), f'{name} does not exist'
    for line in re.findall(r'^::: (\S+)$', page.read_text(encoding='utf-8'), re.M):
        assert _exists(line), f'{line} does not exist'


def test_renamed_names():
    """The right column of the changelog's table."""
    rows = re.findall(r'^\| [^|]+ \| (.+) \|$', (ROOT / 'CHANGELOG.md').read_text(encoding='utf-8'), re.M)
    names = [name for row in rows for name in re.findall(r'`(mnv4_mm[\w.]*)`', row)]
    assert names
    assert [name for name in names if not _exists(name)] == []


def _exists(name: str) -> bool:
    """Return whether a dotted name is a module, or is defined in one, without importing it."""
    path, rest = ROOT, name.split('.')
    while rest and ((path / rest[0]).is_dir() or (path / f'{rest[0]}.py').is_file()):
        path = path / rest.pop(0)
    if not rest:
        return True
    file = path / '__init__.py' if path.is_dir() else path.with_suffix('.py')
    defined = (
        rf'^(?:class|def) {rest[0]}\b',
        rf'^{rest[0]}\b.*=',
        rf'^from \S+ import .*\b{rest[0]}\b',
        rf"^    '{rest[0]}': ",  # the package's own functions, which are imported on first use
    )
    return bool(re.search('|'.join(defined), file.read_text(encoding='utf-8'), re.M))


@pytest.mark.parametrize('page', CURRENT, ids=relative)
def test_files(page):
    for line in code(page):
        for name in re.findall(
            r'(?<![\w./<-])((?:mnv4_mm|configs|tools|tests|docs|examples|requirements|data/mini)/[\w./*{},-]*)', line
        ):
            patterns = _expand(name.rstrip('.,'))
            for pattern in patterns:
                assert any(ROOT.glob(pattern.rstrip('/'))), f'{pattern} does not exist'


def _expand(name: str) -> list[str]:
    """Expands the first {a,b} of a path."""
    match = re.search(r'\{([^}]*)\}', name)
    if not match:
        return [name]
    return [name.replace(match.group(), part.strip()) for part in match.group(1).split(',')]


@pytest.mark.parametrize('page', CURRENT, ids=relative)
def test_config_names(page):
    text = page.read_text(encoding='utf-8')
    for name in re.findall(r'(?<![\w/])mnv4_\w+_(?:coco|ade20k)(?:-mini)?(?![\w*])', text):
        assert (ROOT / f'configs/{name}.py').is_file(), f'no config {name}'


@pytest.mark.parametrize('page', CURRENT, ids=relative)
def test_make_targets(page):
    targets = set(re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(), re.M))
    for line in code(page):
        match = re.match(r'\s*make ((?:[a-z-]+ ?)*)', line)
        unknown = set(match.group(1).split()) - targets if match else set()
        assert not unknown, f'{line!r}: the Makefile has no {", ".join(unknown)}'
        variables = set(re.findall(r'\b([A-Z]+)=', line)) if match else set()
        used = set(re.findall(r'\$\((?:if \$\()?([A-Z]+)\)', (ROOT / 'Makefile').read_text()))
        assert variables <= used, f'{line!r}: the Makefile has no {", ".join(variables - used)}'


@pytest.mark.parametrize('page', CURRENT, ids=relative)
def test_extras(page):
    project = (ROOT / 'pyproject.toml').read_text().partition('[project.optional-dependencies]')[2].partition('\n[')[0]
    extras = set(re.findall(r'^(\w+) = \[', project, re.M))
    named = re.findall(r'(?:\.|mnv4_mm|\.whl)\[(\w+)\]', page.read_text(encoding='utf-8'))
    assert set(named) <= extras, set(named) - extras
    if page.name == 'install.md':
        rows = page.read_text(encoding='utf-8').partition('## Extras')[2].partition('\n## ')[0]
        assert set(re.findall(r'`(\w+)`', rows)) >= extras


@pytest.mark.parametrize('page', CURRENT, ids=relative)
def test_python_blocks(page):
    """Python in the docs can be parsed, and imports from the package what it has."""
    for block in re.findall(r'^```python\n(.*?)^```', page.read_text(encoding='utf-8'), re.M | re.S):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith('mnv4_mm'):
                for alias in node.names:
                    assert _exists(f'{node.module}.{alias.name}'), f'{node.module} has no {alias.name}'


@functools.cache
def messages() -> list[str]:
    """Return all string constants of the package and the tools, placeholders of f-strings as …."""
    found = []
    for path in itertools.chain(ROOT.glob('mnv4_mm/**/*.py'), ROOT.glob('tools/*.py')):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else '…' for part in node.values)
                found.append(''.join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def quoted_messages() -> list[str]:
    text = (ROOT / 'docs/troubleshooting.md').read_text(encoding='utf-8')
    return re.findall(r'^\| `([^`]+)`', text, re.M)


@pytest.mark.parametrize('message', quoted_messages())
def test_troubleshooting(message):
    """A quoted message is part of one message of the package; … stands for any text."""
    pattern = re.compile('.*'.join(re.escape(part.strip()) for part in message.split('…')))
    assert any(pattern.search(text) for text in messages()), f'no message is like {message!r}'


def test_readme_is_short():
    assert len((ROOT / 'README.md').read_text(encoding='utf-8').splitlines()) <= 100
