"""The two trees of README.md: every folder of src/bitnet with its files, and one level of benchmarks, docs,
tests.

benchmarks/readme.py writes them as nested lists, one line for each folder. The phrase beside a package is the
beginning of its `__init__.py`. Modules are in reading order: a module that others of its folder import comes
before them. The folders inside a package follow its files, with their own in parentheses.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from pathlib import Path

from lines import ANNEXES, CORE, ROOT, SOURCE

UNSEEN = ("__pycache__", "__init__.py", "__main__.py")
PHRASES = {
    SOURCE: "What every package may use, and bitnet.load",
    ROOT / "benchmarks": "One file for each measured claim, and generators of pages",
    ROOT / "docs": "All pages",
    ROOT / "tests": "Like src/bitnet",
}


def core_tree() -> str:
    """The core: the modules at the top, then its packages in the order in which to read them."""
    return "\n".join([entry(SOURCE, "src/bitnet"), *packages(CORE)])


def annexes_tree() -> str:
    """The annexes, each with its folders, and the rest of the repository one level deep."""
    known = {*CORE, *ANNEXES}
    unknown = sorted(
        path.name for path in SOURCE.iterdir() if path.is_dir() and path.name not in {*known, *UNSEEN}
    )
    around = [entry(ROOT / name, name, folders=True) for name in ("benchmarks", "docs", "tests")]
    return "\n".join(["* `src/bitnet/`", *packages([*ANNEXES, *unknown]), *around])


def packages(names: Sequence[str]) -> list[str]:
    """The entries of these packages, where they exist."""
    return ["  " + entry(SOURCE / name, name, inner=True) for name in names if (SOURCE / name).is_dir()]


def entry(folder: Path, name: str, *, folders: bool = False, inner: bool = False) -> str:
    """A folder's name, its phrase, and the names in it; with `folders` also those of its folders, with
    `inner` also what is in them.
    """
    inside = sorted(path for path in folder.rglob("*/") if path.name not in UNSEEN)
    names = files(folder)
    names += [f"{path.name}/" for path in inside if folders and path.parent == folder and path.name[0] != "."]
    names += [f"{path.relative_to(folder)}/ ({', '.join(files(path))})" for path in inside if inner]
    return f"* `{name}/` {phrase(folder)}: {', '.join(names)}"


def files(folder: Path) -> list[str]:
    """The files of a folder: modules in reading order, then the rest."""
    inside = [path for path in sorted(folder.iterdir()) if path.name not in UNSEEN and path.name[0] != "."]
    modules = reading_order(folder, [path.stem for path in inside if path.suffix == ".py"])
    return modules + [shown(path) for path in inside if path.is_file() and path.suffix != ".py"]


def shown(path: Path) -> str:
    """A file's name; pages are listed without their suffix."""
    return path.stem if path.suffix == ".md" else path.name


def phrase(folder: Path) -> str:
    """What a folder is about: its docstring up to the first colon or stop."""
    if folder in PHRASES:
        return PHRASES[folder]
    package = folder / "__init__.py"
    about = ast.get_docstring(ast.parse(package.read_text(encoding="utf-8"))) if package.is_file() else None
    about = about or "Files"
    return re.split(r"[:.](?:\s|$)", about, maxsplit=1)[0]


def reading_order(folder: Path, names: Sequence[str]) -> list[str]:
    """The modules of a folder by name, but each after those of the same folder that it imports."""
    order: list[str] = []

    def visit(name: str, above: frozenset[str]) -> None:
        for needed in sorted(imported(folder / f"{name}.py") & set(names) - above):
            visit(needed, above | {name})
        if name not in order:
            order.append(name)

    for name in names:
        visit(name, frozenset({name}))
    return order


def imported(module: Path) -> set[str]:
    """The last part of every module of the same folder that this one imports as it is loaded."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    package = (
        ".".join(["bitnet", *module.parent.relative_to(SOURCE).parts])
        if module.is_relative_to(SOURCE)
        else ""
    )
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            parent, _, name = node.module.rpartition(".")
            found |= {name} if parent == package else set()
            found |= {alias.name for alias in node.names} if node.module == package else set()
    return found
