"""Count the lines of the core, the annexes and the tests, by kind, and find the longest function.

    python benchmarks/lines.py            # prints the table
    python benchmarks/lines.py --write    # and puts it into docs/architecture.md

A line is blank, a comment (`#`), part of a docstring, or code. docs/architecture.md defines core and annexes.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from blocks import table, with_block

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "bitnet"
CORE = ("nn", "kernels", "text", "data", "optim", "generate", "engine", "run", "evaluate", "train")
"""Packages in the order in which to read them."""
ANNEXES = (
    "corpus",
    "experiments",
    "voice",
    "diagnose",
    "report",
    "cost",
    "export",
    "convert",
    "serve",
    "cli",
)
PAGE = ROOT / "docs" / "architecture.md"


class Longest(NamedTuple):
    """The longest function of a group of files."""

    lines: int
    name: str


NONE = Longest(0, "")


@dataclass
class Count:
    """Lines of one group of files, by kind."""

    files: int = 0
    code: int = 0
    docstring: int = 0
    comment: int = 0
    blank: int = 0
    longest: Longest = NONE

    @property
    def total(self) -> int:
        """All lines."""
        return self.code + self.docstring + self.comment + self.blank

    def row(self, name: str) -> list[str]:
        """The group as a row of the table."""
        parts = (self.code, self.docstring, self.comment, self.blank)
        shares = [f"{part / max(self.total, 1):.0%}" for part in parts]
        return [
            name,
            f"{self.files}",
            f"{self.total:,}",
            *shares,
            f"{self.longest.lines} (`{self.longest.name}`)",
        ]


def functions(tree: ast.AST) -> Iterator[Longest]:
    """Every function with its length in lines."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield Longest((node.end_lineno or node.lineno) - node.lineno + 1, node.name)


def docstring_lines(tree: ast.AST) -> set[int]:
    """The line numbers of docstrings."""
    found: set[int] = set()
    for node in ast.walk(tree):
        # A string that is a statement of its own is a docstring of a module, class, function or field.
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            found.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return found


def count(paths: Iterable[Path]) -> Count:
    """Count the lines of these Python files."""
    result = Count()
    for path in paths:
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        documented = docstring_lines(tree)
        result.files += 1
        result.longest = max([result.longest, *functions(tree)], key=lambda one: one.lines)
        for number, line in enumerate(text.splitlines(), start=1):
            if number in documented:
                result.docstring += 1
            elif not line.strip():
                result.blank += 1
            elif line.lstrip().startswith("#"):
                result.comment += 1
            else:
                result.code += 1
    return result


def groups() -> dict[str, Count]:
    """The core, the annexes, the benchmarks and the tests."""
    files = sorted(SOURCE.rglob("*.py"))
    top = [path for path in files if path.parent == SOURCE]  # errors, files, units: part of the core
    core = [path for path in files if path.relative_to(SOURCE).parts[0] in CORE]
    rest = [path for path in files if path not in set(core) and path not in set(top)]
    return {
        "core": count([*top, *core]),
        "annexes": count(rest),
        "src, all": count(files),
        "benchmarks": count(sorted((ROOT / "benchmarks").rglob("*.py"))),
        "tests": count(sorted((ROOT / "tests").rglob("*.py"))),
    }


def lines_table() -> str:
    """The table as Markdown."""
    head = ["part", "files", "lines", "code", "docstrings", "comments", "blank", "longest function"]
    return table(head, [counted.row(name) for name, counted in groups().items()])


def main() -> None:
    """Print the table; with --write put it into the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--write", action="store_true", help="put the table into docs/architecture.md")
    if parser.parse_args().write:
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(with_block(page, "lines", lines_table()), encoding="utf-8")
    print(lines_table())


if __name__ == "__main__":
    main()
