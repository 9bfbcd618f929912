"""The two trees of README.md: every folder of src/bitnet with its files, and one level of benchmarks, docs
and tests.

benchmarks/readme.py writes them. The phrase beside a package is the beginning of its `__init__.py`. Modules
stand in reading order: a module that others of its folder import comes before them.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

from lines import ANNEXES, CORE, ROOT, SOURCE

COLUMN, WIDTH = 20, 130
UNSEEN = ("__pycache__", "__init__.py", "__main__.py")
PHRASES = {
    SOURCE: "What every package may use, and bitnet.load",
    SOURCE / "report" / "template": "The page of a report",
    ROOT / "benchmarks": "One file for each measured claim, and the generators of pages",
    ROOT / "docs": "All pages",
    ROOT / "tests": "Mirrors src/bitnet",
}


def core_tree() -> str:
    """The core: the modules at the top, then its packages in the order in which to read them."""
    return block([entry(SOURCE, "src/bitnet/"), *packages(CORE)])


def annexes_tree() -> str:
    """The annexes, each with its folders, and the rest of the repository one level deep."""
    known = {*CORE, *ANNEXES}
    unknown = sorted(
        path.name for path in SOURCE.iterdir() if path.is_dir() and path.name not in {*known, *UNSEEN}
    )
    around = [entry(ROOT / name, f"{name}/", folders=True) for name in ("benchmarks", "docs", "tests")]
    return block(["src/bitnet/", *packages([*ANNEXES, *unknown]), *around])


def block(entries: Sequence[str]) -> str:
    """The entries as a fenced block of text."""
    return "\n".join(["```text", *entries, "```"])


def packages(names: Sequence[str]) -> list[str]:
    """The entries of these packages, where they exist, each followed by those of its folders."""
    return [
        entry(folder, f"  {folder.relative_to(SOURCE)}/")
        for name in names
        for folder in (SOURCE / name, *sorted((SOURCE / name).rglob("*/")))
        if folder.is_dir() and folder.name not in UNSEEN
    ]


def entry(folder: Path, name: str, *, folders: bool = False) -> str:
    """A folder's name, its phrase, and the names in it."""
    inside = [
        path for path in sorted(folder.iterdir()) if path.name not in UNSEEN and not path.name.startswith(".")
    ]
    modules = reading_order(folder, [path.stem for path in inside if path.suffix == ".py"])
    other = [shown(path) for path in inside if path.is_file() and path.suffix != ".py"]
    deeper = [f"{path.name}/" for path in inside if path.is_dir() and folders]
    text = f"{phrase(folder)}: " + ", ".join([*modules, *other, *deeper])
    return textwrap.fill(
        text, WIDTH, initial_indent=f"{name:{COLUMN}}", subsequent_indent=" " * COLUMN, break_on_hyphens=False
    )


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
    """The last part of every module of the same folder that this one imports."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    package = (
        ".".join(["bitnet", *module.parent.relative_to(SOURCE).parts])
        if module.is_relative_to(SOURCE)
        else ""
    )
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            parent, _, name = node.module.rpartition(".")
            found |= {name} if parent == package else set()
            found |= {alias.name for alias in node.names} if node.module == package else set()
    return found
