"""Read the text of a config that a checkpoint carries, without running it. Imports nothing heavy."""

import ast
from typing import Any

# What `read_assignments` raises for a text that is not plain values. Deep nesting exhausts the stack of the parser.
NOT_PLAIN = (ValueError, SyntaxError, TypeError, RecursionError, MemoryError)


def read_assignments(text: str) -> dict[str, Any]:
    """Return the values that a text assigns to names: literals and ``dict(...)`` only.

    Args:
        text: Python code, as training stores a config in a checkpoint.

    Raises:
        Exception: The text is something else; one of ``NOT_PLAIN``.
    """
    values = {}
    for statement in ast.parse(text).body:
        if not (isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)):
            raise ValueError(f'line {statement.lineno} is not an assignment')
        values[statement.targets[0].id] = _read_value(statement.value)
    return values


def _read_value(node: ast.expr) -> Any:
    match node:
        case ast.Call(func=ast.Name(id='dict'), args=[], keywords=keywords):
            return _read_pairs([(ast.Constant(keyword.arg), keyword.value) for keyword in keywords])
        case ast.Call(func=ast.Name(id='dict'), args=[ast.Dict() as inner], keywords=[]):
            return _read_value(inner)
        case ast.Dict(keys=keys, values=values):
            return _read_pairs(list(zip(keys, values, strict=True)))
        case ast.List(elts=elements):
            return [_read_value(element) for element in elements]
        case ast.Tuple(elts=elements):
            return tuple(_read_value(element) for element in elements)
    return ast.literal_eval(node)


def _read_pairs(pairs: list[tuple[ast.expr | None, ast.expr]]) -> dict[Any, Any]:
    values = {_read_value(key or ast.Constant(None)): _read_value(value) for key, value in pairs}
    if None in values:
        raise ValueError('a dict is unpacked with **')
    return values
