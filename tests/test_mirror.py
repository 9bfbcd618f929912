"""Every test file stands where the file that it tries stands in `src`, and every file without one is named here."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "bitnet"
TESTS = ROOT / "tests"

WHOLE_PRODUCT = {
    "faults": "planted faults, which the examination has to name",
    "hostile": "files, flags, terminals and disks that mean harm, through every verb that meets them",
    "test_docs": "what the README and the pages say is true",
    "test_experiments": "one contract for every experiment",
    "test_golden": "the recorded losses of one small run, bit for bit",
    "test_hatch_build": "the wheel; its build hook stands at the root",
    "test_imports": "who may import whom",
    "test_mirror": "this file",
    "test_names": "one class for a name",
    "test_optional_parts": "every package that may be missing, and what is said then",
    "test_resume": "an interrupted run ends like one that was not, by the real command line",
}
"""Tests of more than one file of the source, each with what it tries."""

TRIED_BY = {
    "cli/compare": "report/test_compare",
    "cli/complete": "hostile/test_bad_input",
    "cli/evaluate": "hostile/test_bad_input",
    "cli/experiments": "test_experiments",
}
"""Files of the source without a test file of their own, and the test that tries them most."""


def named(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def sources() -> set[str]:
    files = {*SOURCE.rglob("*.py"), *SOURCE.rglob("*.c")}
    return {named(path, SOURCE) for path in files if path.stem not in {"__init__", "__main__"}}


def tests() -> dict[str, str]:
    """For each test file the source that it should be about."""
    return {
        named(path, TESTS): named(path.with_name(path.name.removeprefix("test_")), TESTS)
        for path in TESTS.rglob("test_*.py")
    }


def test_every_test_file_has_a_source_file_or_tries_the_whole_product() -> None:
    alone = {test for test, source in tests().items() if source not in sources()}
    assert {test.split("/")[0] for test in alone} == WHOLE_PRODUCT.keys()


def test_the_files_without_a_test_of_their_own_are_those_named_here() -> None:
    assert sources() - set(tests().values()) == TRIED_BY.keys()
    for source, test in TRIED_BY.items():
        assert (TESTS / f"{test}.py").is_file(), (source, test)
