"""Every test file stands where the file that it tries stands in `src`; files without one are named here."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "bitnet"
TESTS = ROOT / "tests"

WHOLE_PRODUCT = {
    "faults": "planted faults, which the examination has to name",
    "hostile": "files, flags, terminals and disks that mean harm, through every verb that meets them",
    "test_docs": "what the README and the pages say is true",
    "test_equality": "the packed engine against PyTorch, by the benchmark that compares them",
    "test_experiments": "one contract for every experiment",
    "test_gpu": "training on the device that BITNET_TEST_DEVICE names, in every format",
    "test_golden": "the recorded losses of one small run, bit for bit",
    "test_hatch_build": "the wheel; its build hook stands at the root",
    "test_imports": "who may import whom",
    "test_mirror": "this file",
    "test_names": "one class for a name",
    "test_own_experiment": "a user's own experiment file, which can do what ours do",
    "test_optional_parts": "every package that may be missing, and what is said then",
    "test_resume": "an interrupted run ends like one that was not, by the real command line",
}
"""Tests of more than one file of the source, each with what it tries."""

TRIED_BY = {
    "cli/test_machine": "kernels/rates",
    "cli/test_cost": "cost/devices cost/flops cost/outlook cost/page cost/presets",
    "cli/test_tokenizer": "text/subword text/tokenizer_json",
    "corpus/test_prepare": "allocator corpus/corpus corpus/encode corpus/preparation corpus/shard_writer",
    "diagnose/test_reference": "diagnose/reference_objectives diagnose/reference_updates",
    "experiments/python_subset/test_sandbox": "experiments/python_subset/sandbox_worker",
    "experiments/test_arithmetic": "experiments/generated_task experiments/recipes",
    "experiments/test_bitnut_sft": "experiments/bitnut_dpo experiments/conversation_data",
    "experiments/test_real_text": "experiments/baseline experiments/ready_text experiments/text_data",
    "faults/test_planted": """
        diagnose/check_decoding diagnose/check_formats
        diagnose/check_learning diagnose/check_start diagnose/check_twin
        diagnose/open_subject diagnose/page diagnose/run_checks
        diagnose/watch
    """,
    "generate/test_decoder": "nn/cached_rows nn/row_lengths",
    "hostile/test_bad_input": "cli/complete cli/evaluate cli/main cli/model cli/runs cli/start_from",
    "report/test_card": "report/read_run",
    "report/test_compare": "cli/compare",
    "report/test_page": "cli/report report/axes report/curves report/heatmap report/tables",
    "report/test_progress": "cli/plot cli/status train/observe/progress",
    "test_experiments": "cli/experiments cli/registry",
    "test_own_experiment": "train/config train/data_config",
    "train/observe/test_observers": """
        run/schema train/observe/alarms train/observe/checkpoints train/observe/guard
        train/observe/measurements train/observe/scalars train/observe/status
    """,
    "train/test_compiled": "train/trial",
    "train/test_resume": "train/begin train/session",
    "voice/test_prompts": "voice/folder",
}
"""For each of these tests, the files of the source that it tries and that have no test file of their own."""


def named(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def sources() -> set[str]:
    files = {*SOURCE.rglob("*.py"), *SOURCE.rglob("*.c")}
    return {named(path, SOURCE) for path in files if path.stem not in {"__init__", "__main__"}}


def found_tests() -> dict[str, str]:
    """For each test file the source that it should be about."""
    return {
        named(path, TESTS): named(path.with_name(path.name.removeprefix("test_")), TESTS)
        for path in TESTS.rglob("test_*.py")
    }


def test_every_test_file_has_a_source_file_or_tries_the_whole_product() -> None:
    alone = {test for test, source in found_tests().items() if source not in sources()}
    assert {test.split("/")[0] for test in alone} == WHOLE_PRODUCT.keys()


def test_the_files_without_a_test_of_their_own_are_those_named_here() -> None:
    named_here = [source for words in TRIED_BY.values() for source in words.split()]
    assert len(named_here) == len(set(named_here))
    untried = sources() - set(found_tests().values())
    assert untried - set(named_here) == set(), "write a test file for each, or name it in TRIED_BY"
    assert set(named_here) - untried == set(), "these have a test file or are gone: take them out"
    assert TRIED_BY.keys() <= found_tests().keys()


def quick_tests(path: Path) -> int:
    """How many test functions of a file are tried with `-m "not slow"`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if any(
        isinstance(node, ast.Assign) and ast.unparse(node) == "pytestmark = pytest.mark.slow"
        for node in tree.body
    ):
        return 0
    return sum(
        isinstance(node, ast.FunctionDef)
        and node.name.startswith("test_")
        and "pytest.mark.slow" not in map(ast.unparse, node.decorator_list)
        for node in tree.body
    )


def test_every_package_is_tried_without_the_slow_tests() -> None:
    for package in sorted({path.parent for path in SOURCE.rglob("*.py")}):
        folder = TESTS / package.relative_to(SOURCE)
        assert sum(quick_tests(path) for path in folder.glob("test_*.py")) > 0, folder
