"""Imports between the packages go down only, those inside functions too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import deploy_clojars

ROOT = Path(deploy_clojars.__file__).parent

# From the top; beside each other stand those that are on one floor.
FLOORS = [
    {"__main__"},
    {"cli", "completion"},
    {"checks", "commands", "sandbox", "setup"},
    {"deploy"},
    {"run"},
    {"host", "screen"},
    {"machine"},
    {"config", "versions"},
    {"errors", "masking"},
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}

# The sandbox's application is a program of its own.
MODULES = [path for path in ROOT.rglob("*.py") if "application" not in path.parts]


def imported(path: Path) -> Iterator[str]:
    """The full names of what a module imports, of `from` imports with the name that is taken."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part(path: Path) -> str:
    """The package or module at the top that a file belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_every_package_has_a_floor() -> None:
    assert {part(path) for path in MODULES} - {"__init__"} == set(FLOOR)


def test_imports_go_down_only() -> None:
    found = {
        (part(path), name.split(".")[1], f"{path.relative_to(ROOT)} imports {name}")
        for path in MODULES
        for name in imported(path)
        if name.startswith("deploy_clojars.")
    }
    assert len(found) > 100
    upwards = [
        line
        for importer, taken, line in sorted(found)
        if taken in FLOOR
        and importer != taken
        and (importer == "__init__" or FLOOR[importer] > FLOOR[taken])
    ]
    assert upwards == []


def test_sh_is_imported_by_shell_alone() -> None:
    names = {
        path.relative_to(ROOT): {name.split(".")[0] for name in imported(path)} for path in MODULES
    }
    assert [str(path) for path, each in names.items() if "sh" in each] == ["machine/shell.py"]
