"""A disk that is full at any write of a command: one line, and everything that was there before is intact."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from reliability.full_disk import COMMANDS, FullDisk, content, make_home, trials_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the commands need."""
    folder = tmp_path_factory.mktemp("home")
    make_home(folder)
    return folder


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_at_any_write_is_one_line_and_costs_nothing(name: str, home: Path) -> None:
    """20 of 33 such cases ended in a traceback: the library of tensors has an error of its own, and reports
    were written in place.
    """
    trials = trials_of(name, home)
    assert trials, f"{name} wrote nothing"
    assert [trial for trial in trials if not trial.held] == []


def test_the_disk_is_as_full_as_it_says(tmp_path: Path) -> None:
    """The trial is only as good as its disk: the first write passes, the second does not, nothing after it,
    and then all is as before.
    """
    with FullDisk(tmp_path, 1) as disk:
        (tmp_path / "a").write_text("a")
        for name in ("b", "c"):
            with pytest.raises(OSError, match="No space left"):
                (tmp_path / name).write_text("b")
    assert disk.hit
    (tmp_path / "d").write_text("d")
    assert {Path(path).name for path in content(tmp_path)} == {"a", "d"}
