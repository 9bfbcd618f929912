"""Imports point down: the table of the architecture, and what may stand nowhere, read from the source with
`ast`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "bitnet"

EVERYWHERE = {"errors", "bounds", "typed", "files", "units", "allocator"}
"""Single modules that every package may import; they import only one another."""
MODEL = {"nn", "text", "data", "optim", "generate", "run", "evaluate"}
CORE = {*MODEL, "train", "terminal", "interrupt"}
MAY_IMPORT: dict[str, set[str]] = {
    **dict.fromkeys(sorted(EVERYWHERE), EVERYWHERE),
    "terminal": set(),
    "interrupt": set(),
    # the core
    "kernels": set(),
    "nn": {"kernels"},
    "text": set(),
    "data": {"text"},
    "engine": {"nn", "kernels", "generate"},
    "optim": {"nn"},
    "generate": {"nn", "text"},
    "run": {"nn", "text"},
    "evaluate": {"nn", "text", "data", "generate"},
    "train": {*CORE, "kernels"},
    "packed_run": {"nn", "text", "run", "generate", "engine", "kernels"},
    "trained_model": {"nn", "text", "run", "generate", "engine", "packed_run"},
    # the annexes
    "corpus": {"text", "data"},
    "voice": {"data"},
    # a voice's fine-tuning is judged by its signs, and against the run that it began from
    "experiments": {
        "engine",
        *("nn", "text", "data", "corpus", "generate", "evaluate", "optim", "trained_model"),
        *("train.config", "train.data_config", "train.objective", "train.experiment"),
        *("voice.score", "voice.topics", "voice.voices"),
    },
    "report": CORE,
    # --measure times the loop's own functions
    "cost": CORE,
    # a rehearsed run is loaded as a user loads it; the packed engine is compared with the model
    "diagnose": {*CORE, "corpus", "trained_model", "engine", "kernels"},
}
DOORS = {"cli", "web"}
ENTRANCES = {
    "__init__": {"nn", "trained_model"},
    "__main__": {"cli"},
}  # the package itself, and `python -m bitnet`
MODULES = sorted(SOURCE.rglob("*.py"))


def room(path: Path) -> str:
    """The package, or top-level module, that a file belongs to."""
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def name_of(path: Path) -> str:
    return str(path.relative_to(SOURCE))


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names of everything imported anywhere in a file: at the top, inside functions, for type
    checkers.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here, so that this test can read them"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).endswith("import_module")
            and isinstance(node.args[0], ast.Constant)
        ):
            yield node.args[0].value


def ours(tree: ast.AST) -> set[str]:
    """What a file imports from this package, without the `bitnet.`; nothing for the package itself (its
    version).
    """
    return {name.removeprefix("bitnet.") for name in imported(tree) if name.startswith("bitnet.")}


def allowed(target: str, permitted: set[str]) -> bool:
    return any(target == one or target.startswith(f"{one}.") for one in permitted)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_only_what_its_room_may(path: Path) -> None:
    here = room(path)
    if here in DOORS:
        permitted = {*MAY_IMPORT, *DOORS, "__version__"}
    else:
        permitted = {*EVERYWHERE, here, *(MAY_IMPORT | ENTRANCES)[here]}
    forbidden = {target for target in ours(ast.parse(path.read_text())) if not allowed(target, permitted)}
    assert forbidden == set(), f"{name_of(path)} may not import {forbidden}"


def test_the_table_covers_every_room_and_the_test_reads_them() -> None:
    """A new package has to be entered in the table before it can be imported."""
    assert {room(path) for path in MODULES} <= {*MAY_IMPORT, *DOORS, *ENTRANCES}
    assert len(MODULES) > 40


def test_only_the_doors_import_experiments() -> None:
    users = {
        room(path)
        for path in MODULES
        if any(allowed(t, {"experiments"}) for t in ours(ast.parse(path.read_text())))
    }
    assert users <= {"experiments", *DOORS}
    assert "cli" in users


@pytest.mark.parametrize("path", sorted((SOURCE / "cli").glob("*.py")), ids=name_of)
def test_the_command_line_names_no_single_experiment(path: Path) -> None:
    """It asks an experiment what it can do, so that a user's own file can do all that ours do."""
    named = {target for target in ours(ast.parse(path.read_text())) if target.startswith("experiments.")}
    assert all(allowed(target, {"experiments.shapes", "experiments.measured"}) for target in named), named


def test_nobody_imports_a_door() -> None:
    users = {
        room(path) for path in MODULES if any(allowed(t, DOORS) for t in ours(ast.parse(path.read_text())))
    }
    assert users <= {"__main__", *DOORS}


@pytest.mark.parametrize("path", [p for p in MODULES if room(p) in ("nn", "optim", "data")], ids=name_of)
def test_the_mathematics_never_prints_and_never_logs(path: Path) -> None:
    tree = ast.parse(path.read_text())
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert called.isdisjoint({"print", "sys.stdout.write", "sys.stderr.write", "warnings.warn"})
    assert {name.split(".")[0] for name in imported(tree)}.isdisjoint({"logging", "warnings"})


def test_the_import_reader_sees_every_kind_of_import() -> None:
    """The rule is only as good as its reader, so here is each form it must not miss."""
    source = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from bitnet.cli.main import main
def late():
    import bitnet.web.server
    from bitnet import report
    importlib.import_module("bitnet.voice.answers")
"""
    assert ours(ast.parse(source)) == {"cli.main.main", "web.server", "report", "voice.answers"}


@pytest.mark.parametrize(
    "path", [*MODULES, *sorted((ROOT / "benchmarks").rglob("*.py"))], ids=lambda p: str(p.relative_to(ROOT))
)
def test_no_pickle_and_no_code_from_strangers(path: Path) -> None:
    """Reading a pickle runs whatever its author wrote; so does trust_remote_code."""
    tree = ast.parse(path.read_text())
    picklers = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    assert {name.split(".")[0] for name in imported(tree)}.isdisjoint(picklers)
    assert {"torch.load", "torch.save"}.isdisjoint(imported(tree))
    attributes = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert attributes.isdisjoint(
        {"torch.load", "torch.save", "torch.jit.load", "torch.hub.load", "torch.package"}
    )
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        words = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert words.get("trust_remote_code", "False") == "False"
        assert words.get("allow_pickle", "False") == "False"
