"""bf16 on a CPU only where a measurement says that it pays; a run keeps the format that it began with."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bitnet.errors import ConfigError
from bitnet.experiments.shapes import SMALL
from bitnet.files import write_json
from bitnet.nn.config import BitNetConfig
from bitnet.nn.transformer import BitNetTransformer
from bitnet.run.layout import RunLayout
from bitnet.train import device as machines
from bitnet.train import precision as module
from bitnet.train.config import TrainConfig
from bitnet.train.device import choose_machine
from bitnet.train.precision import GAIN, Form, Measurement, measured
from conftest import TINY_TRAIN, Result, after_update, run_command, terminate

CPU = torch.device("cpu")
TRAIN = TrainConfig(seq_len=64, batch_size=32, total_steps=1)
SLOWER, FASTER = Measurement(10.0, 12.0), Measurement(12.0, 6.0)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for measurements."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bitnet" / "precision"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pieces each measurement had, which takes no time here."""
    calls: list[int] = []

    def measure(pieces: list[Any]) -> Measurement:
        calls.append(len(pieces))
        return FASTER

    monkeypatch.setattr(module, "_measure", measure)
    return calls


def of_small(**changes: Any) -> Measurement | None:
    return measured(SMALL, dataclasses.replace(TRAIN, **changes), Form("float"))


def test_bf16_has_to_gain_something() -> None:
    assert FASTER.bf16_pays
    assert not SLOWER.bf16_pays
    assert not Measurement(10.0, 10.0 / GAIN).bf16_pays
    assert Measurement(10.0, 10.0 / GAIN - 1e-6).bf16_pays


def test_real_pieces_are_timed_in_both_formats_and_the_random_state_stays() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    found = measured(SMALL, dataclasses.replace(TRAIN, batch_size=16), Form("float", fused_loss=True))
    assert torch.equal(torch.rand(4), expected)
    assert found is not None
    assert found.fp32_ms > 0
    assert found.bf16_ms > 0


def test_pieces_are_a_block_its_attention_where_shortened_and_the_head(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """How many of each an update has: all tokens of all layers go through both."""
    whole = list(module._pieces(SMALL, TRAIN, Form("float")))
    assert [times for _, times in whole] == [SMALL.num_layers, 2048 / module.HEAD_TOKENS]
    monkeypatch.setattr(module, "BLOCK_FLOPS", 6e6)
    monkeypatch.setattr(module, "HEAD_FLOPS", 6.0 * 512 * 128 * 8)
    block, attention, head = module._pieces(SMALL, TRAIN, Form("float"))
    tokens = block[0]().shape[1]
    assert tokens < 64
    assert block[1] == SMALL.num_layers * 2048 / tokens
    assert attention[0]().shape == (1, SMALL.num_heads, 64, SMALL.head_dim)
    assert attention[1] == SMALL.num_layers * 32
    assert head[1] == 4 * (SMALL.vocab_size / 8)


def test_the_block_that_is_timed_computes_as_the_run_will(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was timed with plain modules and float gradients, whatever the run used."""
    seen: list[tuple[Any, ...]] = []
    real = BitNetTransformer.set_product

    def noting(model: BitNetTransformer, *how: Any, fused: bool) -> None:
        seen.append((*how, fused))
        real(model, *how, fused=fused)

    monkeypatch.setattr(BitNetTransformer, "set_product", noting)
    config = dataclasses.replace(
        TRAIN, product="packed", input_gradient="int8", weight_gradient="bf16", fused="on"
    )
    machine = choose_machine(config, CPU, model=SMALL)
    assert machine.timed is not None
    fp32 = ("packed", torch.float32, "int8", torch.bfloat16, True)
    bf16 = ("packed", torch.bfloat16, "int8", torch.bfloat16, True)
    assert set(seen) == {fp32, bf16}


def test_a_tiny_micro_batch_is_not_measured(made: list[int]) -> None:
    assert of_small(batch_size=1) is None
    assert not made


def test_a_measurement_is_remembered_for_its_own_shape(made: list[int], cache: Path) -> None:
    assert of_small() == FASTER
    assert of_small() == dataclasses.replace(FASTER, remembered=True)
    assert len(made) == 1
    of_small(batch_size=48)
    assert len(made) == 2
    assert len(list(cache.iterdir())) == 2
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in cache.iterdir())


def rewritten(**values: Any) -> Callable[[Path], object]:
    def rewrite(path: Path) -> None:
        write_json(path, {**json.loads(path.read_text()), **values})

    return rewrite


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_text("{"),
        lambda path: path.write_text("[]"),
        lambda path: path.write_text("{}" + " " * 5000),
        lambda path: path.chmod(0o622),
        lambda path: (path.rename(path.with_suffix(".moved")), path.symlink_to(path.with_suffix(".moved"))),
        rewritten(bf16_ms="fast"),
        rewritten(bf16_ms=True),
        rewritten(bf16_ms=-1.0),
        rewritten(fp32_ms=None),
        rewritten(key={"cpu": "another"}),
    ],
)
def test_a_file_that_is_damaged_or_not_ours_alone_is_measured_again(
    made: list[int], cache: Path, damage: Callable[[Path], object]
) -> None:
    of_small()
    (path,) = cache.iterdir()
    damage(path)
    assert of_small() == FASTER
    assert len(made) == 2
    path.unlink()  # a link stays one where the new file could not replace it


def test_a_file_of_another_user_is_not_read(made: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    of_small()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    of_small()
    assert len(made) == 2


def test_there_are_never_too_many_files(
    made: list[int], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_FILES", 3)
    for rows in range(24, 30):
        of_small(batch_size=rows)
    assert len(list(cache.iterdir())) == 3


def test_without_a_cache_it_is_measured_each_time(
    made: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert [of_small(), of_small()] == [FASTER, FASTER]


def saying(monkeypatch: pytest.MonkeyPatch, found: Measurement) -> None:
    monkeypatch.setattr(machines, "measured", lambda *words, **options: found)


def test_auto_obeys_the_measurement_and_a_named_format_needs_none(
    tiny_config: BitNetConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for found in (SLOWER, FASTER):
        saying(monkeypatch, found)
        machine = choose_machine(TRAIN, CPU, model=tiny_config)
        assert (machine.bf16, machine.timed) == (found.bf16_pays, found)
        for precision in ("fp32", "bf16"):
            forced = choose_machine(dataclasses.replace(TRAIN, precision=precision), CPU, model=tiny_config)  # type: ignore[arg-type]
            assert (forced.bf16, forced.timed) == (precision == "bf16", None)


def test_a_run_goes_on_with_its_format_on_every_device(
    tiny_config: BitNetConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    for found in (SLOWER, FASTER):
        saying(monkeypatch, found)
        for dtype in ("float32", "bfloat16"):
            for device in (CPU, torch.device("cuda")):
                before = {"linear_product": "float", "gradient_dtype": dtype}
                assert choose_machine(TRAIN, device, before, tiny_config).bf16 == (dtype == "bfloat16")
        # The first runs did not record it, and were fp32 on a CPU.
        assert not choose_machine(TRAIN, CPU, {"linear_product": "float"}, tiny_config).bf16
    with pytest.raises(ConfigError, match="gradient_dtype was 'float8'"):
        choose_machine(TRAIN, CPU, {"linear_product": "float", "gradient_dtype": "float8"}, tiny_config)


def train(runs: Path) -> Result:
    words = ["--train.precision", "auto", "--num-steps", 8, "--run-id", "one", "--runs-dir", runs]
    return run_command(*TINY_TRAIN, *words)


def losses(runs: Path) -> list[float]:
    lines = RunLayout(runs / "one").scalars.read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize(("began", "later"), [(SLOWER, FASTER), (FASTER, SLOWER)])
def test_a_run_resumed_on_a_cpu_whose_measurement_says_otherwise_gives_the_same_curve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, began: Measurement, later: Measurement
) -> None:
    saying(monkeypatch, began)
    result = train(tmp_path / "unbroken")
    assert result.code == 0, result.err
    chosen = "bf16" if began.bf16_pays else "fp32"
    assert f"precision {chosen}: forward and backward take about" in result.out
    provenance = json.loads((tmp_path / "unbroken" / "one" / "meta" / "provenance.json").read_text())
    assert provenance["precision_timed"] == began.facts()
    assert provenance["gradient_dtype"] == ("bfloat16" if began.bf16_pays else "float32")

    with after_update(5, terminate):
        assert train(tmp_path / "broken").code == 128 + signal.SIGTERM
    saying(monkeypatch, later)
    again = train(tmp_path / "broken")
    assert again.code == 0, again.err
    assert "continuing after update 5" in again.out
    assert "other conditions" not in again.out
    assert losses(tmp_path / "broken") == losses(tmp_path / "unbroken")
    assert len(losses(tmp_path / "broken")) == 8
