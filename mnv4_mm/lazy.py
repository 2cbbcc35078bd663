"""Names of a package that are imported on first use (PEP 562), so that importing the package stays light."""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(
    package: str, names: Mapping[str, tuple[str, str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Build the functions ``__getattr__`` and ``__dir__`` of a package.

    Args:
        package: Full name of the package.
        names: For each lazy name in the package, the full name of a module and of the attribute in this module.

    Returns:
        ``__getattr__``, which imports the module of a lazy name, returns the attribute, and raises AttributeError for
        other names; and ``__dir__``, which returns the sorted names of the package including the lazy ones.
    """

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f'module {package!r} has no attribute {name!r}')
        module, attribute = names[name]
        return getattr(importlib.import_module(module), attribute)

    def list_names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *names})

    return get, list_names
