"""No module imports itself through others, so that every module can be imported first."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import magicseg

TOP = Path(magicseg.__file__).parent
FILES = {
    ".".join(path.relative_to(TOP.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in TOP.rglob("*.py")
}


def is_for_types(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def at_import(nodes):
    """The import statements that run when a module is imported."""
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not is_for_types(node):
            yield from at_import(ast.iter_child_nodes(node))


def lazily(package):
    """The names that a package imports when they are first used, by the module that has them."""
    tree = ast.parse(FILES[package].read_text(encoding="utf-8"))
    found = [part for node in tree.body if is_for_types(node) for part in node.body]
    return {alias.name: node.module for node in found if isinstance(node, ast.ImportFrom) for alias in node.names}


def imported(module):
    """The modules of magicseg that importing one imports directly, with the packages that they are in."""
    targets = set()
    for node in at_import(ast.parse(FILES[module].read_text(encoding="utf-8")).body):
        if isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
        else:
            names = lazily(node.module) if node.module in FILES else {}
            targets |= {node.module, *(names.get(alias.name, f"{node.module}.{alias.name}") for alias in node.names)}
    return {part for name in targets & FILES.keys() for part in packages(name)} - set(packages(module))


def packages(module):
    """A module and the packages that it is in, which are imported before it."""
    parts = module.split(".")
    return [".".join(parts[: count + 1]) for count in range(len(parts))]


def test_no_module_imports_itself_through_others():
    try:
        order = list(TopologicalSorter({module: imported(module) for module in FILES}).static_order())
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))
    assert len(order) > 200
