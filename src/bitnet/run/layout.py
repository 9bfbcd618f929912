"""Names and places inside a runs folder, and how a user's word for a run is understood.

runs/<run_id>/meta/            config.json provenance.json dataset_fingerprint.json manifest.json
                               sessions.jsonl
              tokenizer/       the tokenizer the run was trained with
              checkpoints/     step_NNNNNN/
              metrics/         scalars.jsonl quantization.jsonl roll_backs.jsonl
              eval/            eval_results.jsonl
              samples/         samples.jsonl
              anomalies/       step_NNNNNN_<event>/
              status.json      running, done, failed or stopped, and why
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitnet.errors import DataError, NotFoundError, RunError, did_you_mean
from bitnet.files import read_json
from bitnet.run.contents import check_contents

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_STEP = re.compile(r"step_(\d{6,})")
_OLD_CHECKPOINT = re.compile(r"checkpoint(?:_(\d+))?\.pt")


@dataclass(frozen=True)
class RunLayout:
    """Paths of one run. Nothing here has to exist yet."""

    root: Path

    @property
    def run_id(self) -> str:
        """The folder's name."""
        return self.root.name

    @property
    def config(self) -> Path:
        """Full resolved configuration, written before step 0."""
        return self.root / "meta" / "config.json"

    @property
    def provenance(self) -> Path:
        """Code, machine and seeds."""
        return self.root / "meta" / "provenance.json"

    @property
    def signature(self) -> Path:
        """What marks the run as the user's own."""
        return self.root / "meta" / "signature.json"

    @property
    def fingerprint(self) -> Path:
        """What the data was."""
        return self.root / "meta" / "dataset_fingerprint.json"

    @property
    def manifest(self) -> Path:
        """Size and SHA-256 of the files that decide what the run is."""
        return self.root / "meta" / "manifest.json"

    @property
    def sessions(self) -> Path:
        """One line per process that trained the run."""
        return self.root / "meta" / "sessions.jsonl"

    @property
    def tokenizer(self) -> Path:
        """Folder of the tokenizer."""
        return self.root / "tokenizer"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.root / "checkpoints"

    @property
    def scalars(self) -> Path:
        """One line per update."""
        return self.root / "metrics" / "scalars.jsonl"

    @property
    def roll_backs(self) -> Path:
        """One line per roll-back after values that were not finite."""
        return self.root / "metrics" / "roll_backs.jsonl"

    @property
    def quantization(self) -> Path:
        """One line per probe of the ternary weights."""
        return self.root / "metrics" / "quantization.jsonl"

    @property
    def evaluations(self) -> Path:
        """One line per frozen evaluation."""
        return self.root / "eval" / "eval_results.jsonl"

    @property
    def frozen_set(self) -> Path:
        """The held-out batches that every evaluation of this run is measured on."""
        return self.root / "eval" / "frozen_set.safetensors"

    @property
    def samples(self) -> Path:
        """One line per (step, prompt, mode)."""
        return self.root / "samples" / "samples.jsonl"

    @property
    def anomalies(self) -> Path:
        """Folder of debug dumps."""
        return self.root / "anomalies"

    @property
    def verdict(self) -> Path:
        """The last result of `bitnet evaluate`."""
        return self.root / "eval" / "verdict.json"

    @property
    def diagnosis(self) -> Path:
        """The last result of `bitnet diagnose`."""
        return self.root / "eval" / "diagnosis.json"

    @property
    def status(self) -> Path:
        """State of the run."""
        return self.root / "status.json"

    @property
    def lock(self) -> Path:
        """Held by the process that trains."""
        return self.root / ".lock"

    def checkpoint(self, step: int) -> Path:
        """Folder of the checkpoint after update `step`."""
        return self.checkpoints / f"step_{step:06d}"

    def checkpoint_steps(self) -> list[int]:
        """Steps that have a checkpoint folder, ascending."""
        if not self.checkpoints.is_dir():
            return []
        matches = (_STEP.fullmatch(path.name) for path in self.checkpoints.iterdir() if path.is_dir())
        return sorted(int(match.group(1)) for match in matches if match)

    def anomaly(self, step: int, event: str) -> Path:
        """Folder of one debug dump."""
        return self.anomalies / f"step_{step:06d}_{event}"

    def anomaly_folders(self) -> list[Path]:
        """All debug dumps, oldest step first."""
        return sorted(path for path in self.anomalies.glob("step_*") if path.is_dir())

    def line_files(self) -> list[Path]:
        """Every file of JSON lines that carry a step."""
        return [self.scalars, self.quantization, self.evaluations, self.samples]


@dataclass(frozen=True)
class RunReference:
    """A run, and the checkpoint step that was asked for, if any."""

    layout: RunLayout
    step: int | None = None


def check_run_id(run_id: str, experiments: frozenset[str] = frozenset()) -> str:
    """The id if it may name a run; raises RunError."""
    if not RUN_ID.fullmatch(run_id) or ".." in run_id:
        raise RunError(
            f"the run id {run_id!r} is not allowed; use 1 to 64 letters, digits, '.', '_' and '-', beginning "
            "with a letter or digit"
        )
    if run_id == "latest" or run_id in experiments:
        raise RunError(
            f"the run id {run_id!r} is reserved: it selects the newest run; choose another --run-id"
        )
    return run_id


def find_run(word: str, runs_dir: Path) -> RunReference:
    """What the user means by RUN: an id, a directory, a checkpoint or a file in it, an experiment, or
    `latest`.

    Raises RunError for a run whose folder holds pipes, devices or links that lead outside (contents.py).
    """
    found = _meant(word, runs_dir)
    check_contents(found.layout.root)
    return found


def _meant(word: str, runs_dir: Path) -> RunReference:
    """An id in the runs folder first, then a path, then `latest` or the newest run of an experiment."""
    if word and RUN_ID.fullmatch(word):
        direct = RunLayout(runs_dir / word)
        if direct.config.is_file():
            return RunReference(direct)
        if direct.checkpoint_steps():
            raise NotFoundError(
                f"{direct.config} is missing; restore it from a copy of the run {word}, or train another one"
            )

    if "/" in word or os.sep in word or Path(word).exists():
        found = _find_path(Path(word))
        if found is not None:
            return found

    runs = list_runs(runs_dir)
    named = [layout for layout in runs if word == "latest" or _experiment_of(layout) == word]
    if named:
        return RunReference(named[-1])

    names = [layout.run_id for layout in runs]
    hint = (
        did_you_mean(word, names[-8:])
        if names
        else " No run exists there yet; start one with: bitnet train arithmetic"
    )
    raise NotFoundError(f"there is no run {word!r} in {runs_dir}.{hint}")


def _experiment_of(layout: RunLayout) -> Any:
    """What a run trained, or None where its config is damaged: one bad folder must not hide the others."""
    try:
        return read_json(layout.config).get("experiment")
    except DataError:
        return None


def _find_path(path: Path) -> RunReference | None:
    """A run directory or anything inside one."""
    step: int | None = None
    # The plan's own names, as in RUN/checkpoint.pt and RUN/checkpoint_10000.pt.
    old = _OLD_CHECKPOINT.fullmatch(path.name)
    if old and old.group(1):
        step = int(old.group(1))

    for place in (path, *path.parents):
        match = _STEP.fullmatch(place.name)
        if match and place.parent.name == "checkpoints":
            step = int(match.group(1))
        if (place / "meta" / "config.json").is_file():
            return RunReference(RunLayout(place.resolve()), step)
    return None


def list_runs(runs_dir: Path) -> list[RunLayout]:
    """All runs in a folder, oldest first."""
    if not runs_dir.is_dir():
        if runs_dir.exists():
            raise NotFoundError(f"{runs_dir} is a file, not a folder of runs; choose another --runs-dir")
        return []
    found = [RunLayout(path) for path in runs_dir.iterdir() if (path / "meta" / "config.json").is_file()]
    return sorted(found, key=lambda layout: (layout.config.stat().st_mtime_ns, layout.run_id))
