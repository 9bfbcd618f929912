"""The packed engine where it can compute a model, PyTorch where it cannot, and a line that says why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import needs_kernels, small_model

from bitnet.engine.choose import choose_engine
from bitnet.engine.decoder import PackedDecoder
from bitnet.errors import ConfigError
from bitnet.kernels import library
from conftest import Result

pytest_plugins = ["kernel_paths"]  # fixtures: use
pytestmark = needs_kernels


def test_a_model_on_the_cpu_is_packed_unless_torch_is_asked_for() -> None:
    model = small_model()
    chosen = choose_engine(model, "auto", None)
    assert isinstance(chosen.model, PackedDecoder)
    assert chosen.name == f"packed ({library.path()}, head f32)"
    assert chosen.note == ""
    assert choose_engine(model, "packed", "int4").name.endswith("head int4)")
    assert choose_engine(model, "torch", None)[1:] == ("torch", "")
    assert choose_engine(model, "torch", None).model is model


def test_full_weights_have_a_format_that_is_named() -> None:
    """Beside an f32 head they are float32, beside any other bfloat16, which changes the figures a little."""
    full = small_model(weights="full", activations="full")
    large = small_model(weights="full", activations="full", vocab_size=4097)
    path = library.path()
    assert choose_engine(full, "auto", None).name == f"packed ({path}, head f32, projections f32)"
    assert choose_engine(large, "auto", None).name == f"packed ({path}, head int8, projections bf16)"
    assert choose_engine(large, "auto", "f32").name == f"packed ({path}, head f32, projections f32)"
    assert choose_engine(small_model(vocab_size=4097), "auto", None).name == f"packed ({path}, head int8)"


def test_without_kernels_torch_computes_and_one_line_says_so(use: Callable[[Any, str], None]) -> None:
    use(None, "torch")
    model = small_model()
    chosen = choose_engine(model, "auto", None)
    assert chosen.model is model
    assert chosen.note == "PyTorch computes this model: kernels: torch, because BITNET_KERNEL=torch"
    with pytest.raises(ConfigError, match="the packed engine cannot be used: kernels: torch, because"):
        choose_engine(model, "packed", None)
    with pytest.raises(ConfigError, match="leave --engine and --head out to use PyTorch"):
        choose_engine(model, "auto", "int8")


def test_weights_that_are_not_finite_are_left_to_torch() -> None:
    model = small_model()
    with torch.no_grad():
        model.token_embeddings.weight[3, 3] = torch.nan
    chosen = choose_engine(model, "auto", None)
    assert chosen.name == "torch"
    assert "holds values that are not finite" in chosen.note


def test_a_head_has_no_meaning_for_torch() -> None:
    with pytest.raises(ConfigError, match="--engine torch was given"):
        choose_engine(small_model(), "torch", "int8")


@pytest.mark.parametrize("verb", ["complete", "evaluate"])
def test_verbs_say_which_engine_ran_and_both_agree(
    bitnet: Callable[..., Result], runs: Path, verb: str
) -> None:
    words = [verb, "tiny", *(["1 + 1 = "] if verb == "complete" else []), "--runs-dir", runs, "--json"]
    here, plain = bitnet(*words), bitnet(*words, "--engine", "torch")
    assert here.code == plain.code == 0, here.err + plain.err
    assert here.json["engine"] == f"packed ({library.path()}, head f32)"
    assert plain.json["engine"] == "torch"
    key = "completion" if verb == "complete" else "verdict"
    assert here.json[key] == plain.json[key]
    if verb == "evaluate":
        assert f"computed by {here.json['engine']}\n" in here.err
        assert here.json["metrics"] == pytest.approx(plain.json["metrics"], rel=1e-3)


def test_a_path_that_this_cpu_lacks_is_bad_input(
    bitnet: Callable[..., Result], runs: Path, use: Callable[[Any, str], None]
) -> None:
    missing = next(name for name in library.PATHS if name not in library.loaded().paths)
    use(None, missing)
    result = bitnet("complete", "tiny", "1 + 1 = ", "--runs-dir", runs)
    assert result.code == 2
    assert f"BITNET_KERNEL={missing}" in result.err
    assert bitnet("complete", "tiny", "1 + 1 = ", "--runs-dir", runs, "--engine", "torch").code == 0


@pytest.mark.parametrize(
    "note",
    ["no C compiler: cc, gcc and clang are not installed", "the C compiler cc failed (x.c:3: fatal error)"],
)
def test_a_verb_without_a_compiler_says_so_and_computes_with_torch(
    bitnet: Callable[..., Result], runs: Path, use: Callable[[Any, str], None], note: str
) -> None:
    words = ("complete", "tiny", "1 + 1 = ", "--runs-dir", runs, "--json")
    expected = bitnet(*words, "--engine", "torch").json
    use(library.Loaded(None, note), "")
    found = bitnet(*words)
    assert found.code == 0
    assert found.json == expected
    assert found.err == f"PyTorch computes this model: kernels: torch, {note}\n"
    refused = bitnet(*words, "--engine", "packed")
    assert refused.code == 2
    assert note in refused.err
    assert refused.err.count("\n") == 1


@pytest.mark.parametrize("quickly", [True, False])
def test_a_text_beyond_the_memory_is_one_line(
    bitnet: Callable[..., Result], runs: Path, monkeypatch: pytest.MonkeyPatch, quickly: bool
) -> None:
    """Whether torch was left out or not."""
    monkeypatch.setattr("bitnet.engine.decoder.machine_memory_bytes", lambda: 1000)
    words = ["complete", "tiny", "1 + 1 = ", "--runs-dir", runs]
    result = bitnet(*words, *([] if quickly else ["--temperature", "0.5"]))
    assert result.code == 2
    assert "the machine has 0.0; use fewer or shorter ones" in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("change", [{"activation": "gelu"}, {"weights": "binary"}, {"num_kv_heads": 3}])
def test_a_configuration_that_the_engine_does_not_know_is_refused(
    bitnet: Callable[..., Result], runs: Path, change: dict[str, Any]
) -> None:
    place = runs / "tiny" / "meta"
    (place / "manifest.json").unlink()
    config = json.loads((place / "config.json").read_text())
    config["model"] |= change
    (place / "config.json").write_text(json.dumps(config))
    for engine in ("auto", "packed", "torch"):
        result = bitnet("complete", "tiny", "1 + 1 = ", "--runs-dir", runs, "--engine", engine)
        assert result.code == 2
        assert next(iter(change)) in result.err
        assert result.err.count("\n") == 1
