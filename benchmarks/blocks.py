"""Markdown tables, and the generated blocks of a page: what is between <!-- name --> and <!-- /name -->."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def with_block(page: str, name: str, content: str) -> str:
    """The page with the content of every block of this name replaced."""
    pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
    return re.sub(pattern, lambda match: f"{match[1]}{content}\n{match[2]}", page, flags=re.DOTALL)
