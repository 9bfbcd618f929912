"""A run's model in packed form: the same text as with torch, and torch is not imported for it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bitnet.errors import BitnetError, CheckpointError
from bitnet.kernels import library
from bitnet.packed_run import load_packed
from bitnet.trained_model import load
from conftest import Result

pytestmark = pytest.mark.skipif(library.loaded().library is None, reason=library.describe())


def test_text_is_that_of_the_training_model(runs: Path) -> None:
    quick, trained = load_packed("tiny", runs_dir=runs), load("tiny", runs_dir=runs, engine="torch")
    assert quick.step == trained.step
    for prompt in ("1 + 1 = ", "12 - 7 = ", "3 + "):
        assert "".join(quick.stream(prompt)) == trained.complete(prompt)
        assert "".join(quick.stream(prompt, stop=None, max_new_tokens=9)) == trained.complete(
            prompt, stop=None, max_new_tokens=9
        )


def test_complete_imports_no_torch(runs: Path) -> None:
    script = (
        "import sys; from bitnet.cli.main import main; code = main(sys.argv[1:]); "
        "print('torch' in sys.modules); sys.exit(code)"
    )
    words = [sys.executable, "-c", script, "complete", "tiny", "1 + 1 = ", "--runs-dir", str(runs)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False"


def test_a_named_step_is_read_and_another_one_refused(runs: Path) -> None:
    assert load_packed(runs / "tiny" / "checkpoints" / "step_000004", runs_dir=runs).step == 4
    with pytest.raises(BitnetError):
        load_packed("nothing", runs_dir=runs)


@pytest.mark.parametrize("file", ["model.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_left_to_the_other_way_which_names_it(
    bitnet: Callable[..., Result], runs: Path, file: str
) -> None:
    path = runs / "tiny" / "checkpoints" / "step_000008" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x40
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        load_packed("tiny", runs_dir=runs)
    result = bitnet("complete", "tiny", "1 + 1 = ", "--runs-dir", runs, "--json")
    assert result.code == 0
    assert result.json["step"] == 6
    assert "step_000008" in result.err


def test_a_file_that_is_cut_short_is_noticed_too(runs: Path) -> None:
    path = runs / "tiny" / "checkpoints" / "step_000008" / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors is missing or cut short"):
        load_packed("tiny", runs_dir=runs)
