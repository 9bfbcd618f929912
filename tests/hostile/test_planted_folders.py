"""A few of the folders that `python benchmarks/reliability --hostile 200` plants, handed to the commands that
read such things.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from reliability import fuzz, hostile_files, hostile_runs

pytestmark = pytest.mark.slow


EVERY = 31  # a prime, so that the sample walks through the groups and kinds


def test_a_sample_of_hostile_run_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same ones each time, each with another command. A failure shows what was planted, for whom, and
    what became of it.
    """
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(fuzz, "LIMIT_MEMORY", hostile_files.LIMIT_MEMORY)
    sample = hostile_runs.cases()[::EVERY]
    assert len(sample) > 5
    template = hostile_files.make_world(tmp_path / "template")
    trials = [
        hostile_files.trial(case, case.commands[turn % len(case.commands)], template, tmp_path / "world")
        for turn, case in enumerate(sample)
    ]
    assert [trial for trial in trials if not trial.held] == []


def test_two_hundred_cases_and_more_have_names_of_their_own() -> None:
    names = [(case.group, case.name) for case in hostile_runs.cases()]
    assert len(set(names)) == len(names) > 200
