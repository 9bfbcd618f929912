"""One class name for one thing, across the whole package, read from the source with `ast`."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src"


def test_no_two_classes_share_a_name() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(f"{path.relative_to(SOURCE)}:{node.lineno}")

    assert len(places) > 100, "the walk found the package"
    shared = {name: found for name, found in places.items() if len(found) > 1}
    assert not shared, f"rename all but one of each: {shared}"
