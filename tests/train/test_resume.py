"""A resume goes on only from what the run wrote: the same lines, the same data; and says under which
conditions.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import bitnet.train.device as device_module
import bitnet.train.resume as resume_module
import bitnet.train.session as session_module
from bitnet.run.layout import RunLayout
from conftest import THREADS, TINY_TRAIN, Result, after_update, run_command, terminate

FILES = [
    "metrics/scalars.jsonl",
    "metrics/quantization.jsonl",
    "eval/eval_results.jsonl",
    "samples/samples.jsonl",
]
PERIODS = [
    "--train.eval-every=2",
    "--train.probe-every=2",
    "--train.sample-every=2",
    "--train.checkpoint-every=4",
]


def train(runs: Path, *words: object) -> Result:
    return run_command(*TINY_TRAIN, *PERIODS, "--num-steps", 8, "--run-id", "one", "--runs-dir", runs, *words)


def stopped_at(step: int, runs: Path, *words: object) -> Result:
    """A run that a signal stopped after an update."""
    with after_update(step, terminate):
        return train(runs, *words)


@pytest.fixture(scope="module")
def _stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("stopped") / "runs"
    assert stopped_at(6, runs).code == 128 + signal.SIGTERM
    return runs


@pytest.fixture
def stopped(_stopped: Path, tmp_path: Path) -> Path:
    """A copy of a runs folder with the run `one`, stopped after update 6."""
    return Path(shutil.copytree(_stopped, tmp_path / "runs"))


def lines_cut(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def line_altered(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"step": 2', b'"step": 3', 1))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "emptied": lambda path: path.write_bytes(b""),
    "lines cut": lines_cut,
    "a line altered": line_altered,
    "deleted": Path.unlink,
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_lines_before_the_checkpoint_must_be_those_that_were_written(
    name: str, damage: str, stopped: Path
) -> None:
    """Emptied, cut, altered and deleted files of metrics were gone on with in silence, in 15 of 15 cases."""
    layout = RunLayout(stopped / "one")
    DAMAGES[damage](layout.root / name)
    others = {other: (layout.root / other).read_bytes() for other in FILES if (layout.root / other).exists()}
    result = train(stopped)
    assert result.code == 2
    assert name in result.err
    assert "--from RUN" in result.err
    assert others == {other: (layout.root / other).read_bytes() for other in others}


@pytest.mark.slow
def test_lines_after_the_checkpoint_are_dropped_and_written_again(stopped: Path) -> None:
    layout = RunLayout(stopped / "one")
    for name in FILES:
        with (layout.root / name).open("a") as file:
            file.write('{"step": 7, "loss": 1.5}\n{"step": 8, "lo')
    assert train(stopped).code == 0
    assert [json.loads(line)["step"] for line in layout.scalars.read_text().splitlines()] == list(range(1, 9))


@pytest.mark.slow
def test_a_checkpoint_without_the_record_of_lines_is_resumed_as_before(
    stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs that began with an earlier version have none."""
    real = resume_module.newest_good

    def without(*words: Any, **options: Any) -> Any:
        found = real(*words, **options)
        assert found is not None
        return found._replace(state={key: value for key, value in found.state.items() if key != "lines"})

    monkeypatch.setattr(resume_module, "newest_good", without)
    assert train(stopped).code == 0


def test_every_session_is_recorded_and_other_conditions_are_said(
    stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CPU results hang on the number of threads, so a resume with another one says so."""
    real = session_module.provenance
    monkeypatch.setattr(
        session_module, "provenance", lambda *words, **options: {**real(*words, **options), "threads": 7}
    )
    result = train(stopped)
    assert result.code == 0
    assert f"resumed under other conditions (threads: {THREADS} -> 7)" in result.out
    rows = [json.loads(line) for line in RunLayout(stopped / "one").sessions.read_text().splitlines()]
    assert [(row["step"], row["threads"]) for row in rows] == [(0, THREADS), (6, 7)]


def test_an_equal_session_is_silent(stopped: Path) -> None:
    assert "other conditions" not in train(stopped).out


def rewritten(path: Path, **values: Any) -> None:
    """One line of conditions with other values; those of None are left out."""
    row = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: value for key, value in row.items() if value is not None}) + "\n")


def test_a_run_from_before_packed_products_goes_on_with_int8(stopped: Path) -> None:
    """Its settings leave the choice to the machine, which now takes another product for new runs."""
    layout = RunLayout(stopped / "one")
    rewritten(layout.sessions, linear_product="int8", input_gradient=None, fused_blocks=None)
    result = train(stopped)
    assert result.code == 0
    assert "resumed under other conditions" not in result.out
    session = json.loads(layout.sessions.read_text().splitlines()[-1])
    assert (session["linear_product"], session["input_gradient"]) == ("int8", "float")
    assert session["fused_blocks"] is False


def test_a_run_goes_on_with_int8_input_gradients_only_if_it_began_with_them(stopped: Path) -> None:
    layout = RunLayout(stopped / "one")
    rewritten(layout.sessions, linear_product="packed", input_gradient="int8", fused_blocks=True)
    assert train(stopped).code == 0
    session = json.loads(layout.sessions.read_text().splitlines()[-1])
    assert (session["linear_product"], session["input_gradient"]) == ("packed", "int8")
    assert session["fused_blocks"] is True


def test_a_run_goes_on_with_bf16_weight_gradients_and_without_autocast(stopped: Path) -> None:
    layout = RunLayout(stopped / "one")
    rewritten(layout.sessions, linear_product="packed", weight_gradient="bf16", gradient_dtype="float32")
    result = train(stopped)
    assert result.code == 0
    assert "resumed under other conditions" not in result.out
    session = json.loads(layout.sessions.read_text().splitlines()[-1])
    assert (session["weight_gradient"], session["gradient_dtype"]) == ("bf16", "float32")


def test_a_run_from_before_there_was_a_choice_goes_on_with_float32_weight_gradients(
    stopped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = RunLayout(stopped / "one")
    monkeypatch.setattr(device_module, "AUTO_WEIGHT_GRADIENT", "bf16")
    monkeypatch.setattr(device_module, "has_bf16_units", lambda device: True)
    rewritten(layout.sessions, linear_product="packed", weight_gradient=None, gradient_dtype="float32")
    assert train(stopped).code == 0
    session = json.loads(layout.sessions.read_text().splitlines()[-1])
    assert (session["weight_gradient"], session["gradient_dtype"]) == ("fp32", "float32")


def test_products_that_this_version_does_not_know_are_refused(stopped: Path) -> None:
    rewritten(RunLayout(stopped / "one").sessions, linear_product="ternary2")
    result = train(stopped)
    assert result.code == 2
    assert "linear_product was 'ternary2'" in result.err


def test_changed_data_is_refused_and_named(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A generated table that another version makes otherwise: other rows under the same settings."""
    import bitnet.data.generated as generated

    real = generated.TableRows.fingerprint
    monkeypatch.setattr(
        generated.TableRows, "fingerprint", lambda rows: {**real(rows), "table_sha256": "0" * 64}
    )
    before = RunLayout(stopped / "one").scalars.read_bytes()
    result = train(stopped)
    assert result.code == 2
    assert "table_sha256" in result.err
    assert RunLayout(stopped / "one").scalars.read_bytes() == before


@pytest.mark.slow
def test_a_run_that_says_done_without_any_checkpoint_is_not_done(stopped: Path) -> None:
    """It printed `already done`, with exit code 0, although no weights were left."""
    assert train(stopped).code == 0
    layout = RunLayout(stopped / "one")
    last = layout.checkpoint(8)
    (last / "model.safetensors").write_bytes(b"")
    again = train(stopped)
    assert again.code == 0
    assert "done again" in again.out
    assert "already done" in train(stopped).out
    shutil.rmtree(layout.checkpoints)
    lost = train(stopped)
    assert lost.code == 2
    assert "says done, but there is no checkpoint" in lost.err


def test_a_run_with_metrics_and_no_checkpoint_is_not_begun_anew(stopped: Path) -> None:
    layout = RunLayout(stopped / "one")
    shutil.rmtree(layout.checkpoints)
    before = layout.scalars.read_bytes()
    result = train(stopped)
    assert result.code == 2
    assert "metrics but no checkpoint" in result.err
    assert layout.scalars.read_bytes() == before


@pytest.mark.slow
def test_a_runs_folder_that_is_removed_while_training_never_ends_with_done(tmp_path: Path) -> None:
    """It said done, with exit code 0, and left a new folder with nothing but a status in it."""
    with after_update(6, lambda: shutil.rmtree(tmp_path / "runs")):
        result = train(tmp_path / "runs")
    assert result.code == 2
    assert "was removed or moved while the run was training" in result.err
    assert "done" not in result.out
    assert not (tmp_path / "runs").exists()
