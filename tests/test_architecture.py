"""Imports of the package run downwards from room to room, and modules form no cycles.

Imports are read from the source: those inside of functions and under ``TYPE_CHECKING`` count too. So do strings that
name a module of the package or a class that is registered with OpenMMLab, because they import or build it by name.
"""

import ast
from collections import deque
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

from mnv4_mm import registration

PACKAGE = Path(__file__).parents[1] / 'mnv4_mm'

# The rooms, subpackages and single modules, from the ground up. A room may import the rooms of the lines above its own.
ROOMS: tuple[tuple[str, ...], ...] = (
    ('errors', 'version', 'quiet', 'lazy'),
    ('paths', 'files', 'image_headers', 'digest', 'processors', 'json_lines', 'pareto', 'child_processes'),
    ('images',),
    ('weights',),
    ('upstream',),
    ('models', 'data', 'runtime'),
    ('engine', 'web'),
    ('tasks',),
    ('config',),
    ('apis',),
    ('deploy',),
    ('demo', 'label'),
    ('report', 'bench', 'transfer'),
    ('search',),
    ('registration',),
    ('cli',),
    ('__init__', '__main__'),
)
LEVELS = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
# Modules that are imported, or run exported files, where PyTorch and OpenMMLab are not installed or not yet loaded.
LIGHT = (
    'errors', 'version', 'quiet', 'lazy', 'paths', 'files', 'image_headers', 'images', 'data.formats', 'models.arch',
    'processors', 'json_lines', 'pareto', 'child_processes',
    'models.space', 'weights.tags', 'weights.cache', 'weights.work_dir', 'search.front', 'search.latency',
    'report.weights', 'runtime',
    'config.check', 'config.index', 'config.literals', 'config.options', 'config.rules', 'config.source',
    'deploy.arguments',
    'deploy.measured', 'web', 'bench.parts', 'demo', 'label', 'transfer.protocol', 'transfer.job', 'transfer.records',
    'transfer.splits', 'transfer.estimate', 'transfer.claims', 'transfer.nets', 'registration', 'cli', '__init__',
)  # fmt: skip
HEAVY = {'torch', 'torchvision', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'timm'}


class Edge(NamedTuple):
    """Reference from one module of the package to another; both without the leading ``mnv4_mm.``."""

    source: str
    target: str
    line: int
    is_runtime: bool  # False under TYPE_CHECKING

    def __str__(self) -> str:
        path = PACKAGE.name + '/' + self.source.replace('.', '/')
        return f'{path}, line {self.line}, refers to {PACKAGE.name}.{self.target}'


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' and len(parts) > 1 else parts)


SOURCES = {module_name(path): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob('*.py'))}


def registered_classes() -> dict[str, str]:
    """Return the module of each class with a decorator ``@REGISTRY.register_module(...)``."""
    return {
        node.name: module
        for module, tree in SOURCES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef) and any('register_module' in ast.unparse(d) for d in node.decorator_list)
    }


def test_every_registered_class_is_imported_when_openmmlab_is():
    modules = {f'{PACKAGE.name}.{module}' for module in registered_classes().values()}
    assert modules == set(registration.MODULES)


def to_module(dotted: str) -> str | None:
    """Return the module that a dotted name of the package belongs to; None for a name outside of the package."""
    name, _, rest = dotted.partition('.')
    if name != PACKAGE.name:
        return None
    while rest and rest not in SOURCES:
        rest = rest.rpartition('.')[0]
    return rest or '__init__'


def walk(node: ast.AST, is_runtime: bool = True) -> Iterator[tuple[ast.AST, bool]]:
    """Yield all nodes, and whether they are executed: False under ``if TYPE_CHECKING``."""
    yield node, is_runtime
    for child in ast.iter_child_nodes(node):
        type_only = isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.unparse(node.test) and child in node.body
        yield from walk(child, is_runtime and not type_only)


def imported_names(node: ast.AST) -> list[str]:
    """Return the dotted names that an import statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, f'relative import of {node.module}: imports of this package are absolute'
        return [f'{node.module}.{alias.name}' for alias in node.names]
    return []


def edges() -> list[Edge]:
    classes = registered_classes()
    result = []
    for source, tree in SOURCES.items():
        for node, is_runtime in walk(tree):
            targets = [to_module(name) for name in imported_names(node)]
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                parts = node.value.split('.')
                is_dotted = len(parts) > 1 and all(part.isidentifier() for part in parts)
                targets = [classes.get(node.value), to_module(node.value) if is_dotted else None]
            for target in targets:
                if target is not None and target != source:
                    assert isinstance(node, ast.stmt | ast.expr)
                    result.append(Edge(source, target, node.lineno, is_runtime))
    return result


def room(module: str) -> str:
    return module.partition('.')[0]


def test_every_module_belongs_to_a_room():
    unknown = {room(module) for module in SOURCES} - LEVELS.keys()
    assert not unknown, f'{sorted(unknown)} of {PACKAGE.name}/ have no place yet: add them to ROOMS of this test'


def test_imports_run_downwards():
    order = ' < '.join(', '.join(rooms) for rooms in ROOMS)
    wrong = [
        edge
        for edge in edges()
        if room(edge.source) != room(edge.target) and LEVELS[room(edge.source)] <= LEVELS[room(edge.target)]
    ]
    lines = '\n'.join(f'  {edge}: {room(edge.source)} must not need {room(edge.target)}' for edge in wrong)
    assert not wrong, f'{len(wrong)} references run upwards or sideways:\n{lines}\nRooms from the ground up: {order}'


def test_modules_form_no_cycles():
    graph: dict[str, set[str]] = {module: set() for module in SOURCES}
    for edge in edges():
        if edge.is_runtime:
            graph[edge.source].add(edge.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f'a cycle of imports: {" <- ".join(error.args[1])}')


def test_light_modules_do_not_import_pytorch_or_openmmlab():
    """Neither directly nor through other modules. Imports inside of functions do not count: they run later."""
    light = [module for module in SOURCES if f'{module}.'.startswith(tuple(f'{name}.' for name in LIGHT))]
    wrong = [f'  {" -> ".join(chain)}' for module in light if (chain := heavy_import(module))]
    assert not wrong, '\n'.join(['modules that must be light import PyTorch or OpenMMLab:', *wrong])


def heavy_import(module: str) -> tuple[str, ...] | None:
    """Return the shortest chain of imports from a module to a heavy package; None if there is none."""
    pending, visited = deque([(module,)]), {module}
    while pending:
        path = pending.popleft()
        for name in [name for node in executed_at_import(SOURCES[path[-1]]) for name in imported_names(node)]:
            if room(name) in HEAVY:
                return (*path, name)
            # Python executes the packages that contain a module, too.
            parts = (to_module(name) or '').split('.')
            for target in {'.'.join(parts[:i]) for i in range(1, len(parts) + 1)} & SOURCES.keys() - visited:
                visited.add(target)
                pending.append((*path, target))
    return None


def executed_at_import(tree: ast.Module) -> list[ast.Import | ast.ImportFrom]:
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.Lambda)]
    later = {id(node) for function in functions for node in ast.walk(function)}
    return [
        node
        for node, is_runtime in walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom) and is_runtime and id(node) not in later
    ]


def test_the_checks_find_mistakes(monkeypatch):
    """Each check fails for a module that breaks its rule."""
    broken = {
        'unplaced': '',
        'apis.train': '',
        'images': 'def read(path):\n    from mnv4_mm.apis.train import train',
        'engine.hook': "dict(type='Planted')",
        'report.planted': '@MODELS.register_module()\nclass Planted: ...',
        'weights.a': 'from mnv4_mm.weights import b',
        'weights.b': 'import mnv4_mm.weights.a',
        'runtime.session': 'import torch',
        'runtime.meta': 'from mnv4_mm.weights import c',
        'weights.c': 'import mmengine.logging',
    }
    monkeypatch.setattr(
        f'{__name__}.SOURCES', {name: ast.parse(text) for name, text in {**broken, 'apis.train': ''}.items()}
    )
    with pytest.raises(AssertionError, match='unplaced'):
        test_every_module_belongs_to_a_room()
    with pytest.raises(AssertionError, match='2 references') as failure:
        test_imports_run_downwards()
    assert 'images, line 2, refers to mnv4_mm.apis.train: images must not need apis' in str(failure.value)
    assert 'engine must not need report' in str(failure.value)
    with pytest.raises(AssertionError, match=r'report\.planted'):
        test_every_registered_class_is_imported_when_openmmlab_is()
    with pytest.raises(pytest.fail.Exception, match=r'weights\.'):
        test_modules_form_no_cycles()
    with pytest.raises(AssertionError, match=r'runtime\.session -> torch') as failure:
        test_light_modules_do_not_import_pytorch_or_openmmlab()
    assert 'runtime.meta -> weights.c -> mmengine.logging' in str(failure.value)
