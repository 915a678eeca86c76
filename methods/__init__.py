"""Training methods: each module of this package is one paper, and the directory is the registry.

A method from another distribution joins through the entry-point group ``trilemma.methods`` (name = module).
Only the standard library is imported here, so that listing the catalogue costs nothing and a paper that fails to
import breaks only itself.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from methods.errors import InputError, nearest

if TYPE_CHECKING:
    from methods.training.method import Method

GROUP = "trilemma.methods"
_NOT_PAPERS = {"errors", "files"}


def _own_modules() -> dict[str, str]:
    """Map the name of each method of this directory to its module."""
    return {
        module.name: f"{__name__}.{module.name}"
        for module in iter_modules(__path__)
        if not module.ispkg and module.name not in _NOT_PAPERS
    }


def _modules() -> dict[str, str]:
    """Map each method's name to the module that holds it."""
    # Not at the top: `--help` imports this package, asks for no entry point, and would take a tenth longer.
    from importlib.metadata import entry_points

    return {point.name: point.module for point in entry_points(group=GROUP)} | _own_modules()


def names() -> list[str]:
    """Return the names of all methods, sorted."""
    return sorted(_modules())


def get(name: str) -> type[Method]:
    """Return the Method class of the paper called ``name``.

    Raises:
        InputError: no such method, or its module does not import or does not define exactly one Method.
    """
    from methods.training.method import Method

    # Entry points are in a file of every installed distribution; only a name from elsewhere needs them.
    modules = _own_modules()
    if name not in modules:
        modules = _modules()
    if name not in modules:
        raise InputError(f'There is no method "{name}".{nearest(name, modules)}')
    try:
        module = import_module(modules[name])
    except Exception as error:
        raise InputError(f'The method "{name}" does not import: {type(error).__name__}: {error}') from error
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Method) and value.__module__ == module.__name__
    ]
    if len(own) != 1:
        raise InputError(f'The module of method "{name}" defines {len(own)} Method classes; it must define one.')
    return own[0]
