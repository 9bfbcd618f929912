"""What many tests share: a number of threads, a tiny model, the real command line, and one small trained
run.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, settings

from bitnet.cli.main import main
from bitnet.nn.config import BitNetConfig
from bitnet.nn.transformer import BitNetTransformer
from bitnet.train import start
from bitnet.train.compiled import keep_processors_apart
from bitnet.train.loop import StepReport

settings.register_profile(
    "quick", deadline=None, max_examples=50, derandomize=True, suppress_health_check=list(HealthCheck)
)
settings.load_profile("quick")

THREADS = int(os.environ.get("OMP_NUM_THREADS", "1"))
"""Threads of this process and of every process that a test starts: results are equal bit for bit for equal
threads only."""

os.environ |= {"OMP_NUM_THREADS": str(THREADS), "MKL_NUM_THREADS": str(THREADS)}

TINY_MODEL = """
    --model.hidden-size 32 --model.num-layers 1 --model.num-heads 2 --model.num-kv-heads 1
    --model.ffn-hidden-size 64
""".split()
TINY_TRAIN = [
    "train",
    "arithmetic",
    "--variant",
    "quick",
    "--device",
    "cpu",
    *TINY_MODEL,
    "--batch-size",
    "8",
    "--data.max-operand",
    "9",
    "--train.eval-cases",
    "8",
]


needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++")),
    reason="torch.compile needs a C++ compiler",
)


class Result(NamedTuple):
    """What one command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The last line of standard output, where `--json` puts its result."""
        return json.loads(self.out.strip().splitlines()[-1])


Command = Callable[..., Result]
"""What the fixture `bitnet` gives: one command in this process."""


def run_command(*words: object) -> Result:
    """One `bitnet` command in this process, through the same door as the installed program."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words])
    return Result(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def after_update(step: int, happening: Callable[[], object]) -> Iterator[None]:
    """Within this, something happens in every training right after an update, before any observer sees it."""
    real = start.train_steps

    def steps(*words: Any, **options: Any) -> Iterator[StepReport]:
        for report in real(*words, **options):
            if report.step == step:
                happening()
            yield report

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(start, "train_steps", steps)
        yield


def terminate() -> None:
    """What `kill` does to this process."""
    signal.raise_signal(signal.SIGTERM)


@pytest.fixture(autouse=True, scope="session")
def _threads() -> None:
    """Sums in one order, so that equal means equal."""
    torch.set_num_threads(THREADS)
    keep_processors_apart()  # what tests compile themselves is kept on disk too


@pytest.fixture(autouse=True, scope="session")
def _own_key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A key for signing runs that is the tests' own, not the developer's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture
def bitnet() -> Command:
    return run_command


@pytest.fixture
def tiny_config() -> BitNetConfig:
    """Small, with grouped queries; tests change single fields with dataclasses.replace."""
    return BitNetConfig(
        vocab_size=32,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        ffn_hidden_size=48,
        max_seq_length=24,
    )


@pytest.fixture
def tiny_model(tiny_config: BitNetConfig) -> BitNetTransformer:
    torch.manual_seed(1)
    return BitNetTransformer(tiny_config)


@pytest.fixture(scope="session")
def _finished_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with one finished run, `tiny`: 8 updates, checkpoints at 0, 3, 4, 6 and 8."""
    runs = tmp_path_factory.mktemp("finished") / "runs"
    result = run_command(
        *TINY_TRAIN, "--num-steps", 8, "--train.checkpoint-every", 3, "--run-id", "tiny", "--runs-dir", runs
    )
    assert result.code == 0, result.err
    return runs


@pytest.fixture
def runs(_finished_runs: Path, tmp_path: Path) -> Path:
    """The test's own copy of a runs folder that holds the finished run `tiny`."""
    return Path(shutil.copytree(_finished_runs, tmp_path / "runs"))
