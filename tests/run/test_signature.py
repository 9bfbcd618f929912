"""What marks a run as the user's own, and what does not."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

import pytest

from bitnet.run.layout import RunLayout
from bitnet.run.signature import is_own, key_path, sign
from conftest import TINY_TRAIN, Command


def test_a_trained_run_is_own_and_stays_so_when_copied(runs: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(runs / "tiny", tmp_path / "elsewhere" / "other-name")
    assert is_own(RunLayout(runs / "tiny"))
    assert is_own(RunLayout(Path(copy)))
    assert stat.S_IMODE(key_path().stat().st_mode) == 0o600


def test_an_edited_configuration_is_no_longer_own(runs: Path) -> None:
    layout = RunLayout(runs / "tiny")
    layout.config.write_text(layout.config.read_text().replace('"arithmetic"', '"tictactoe"', 1))
    assert not is_own(layout)


@pytest.mark.parametrize(
    "content", [None, "{}", "[]", '{"config_hmac_sha256": 1}', '{"config_hmac_sha256": "é"}', "{"]
)
def test_no_signature_and_a_false_one_are_foreign(runs: Path, content: str | None) -> None:
    layout = RunLayout(runs / "tiny")
    layout.signature.unlink() if content is None else layout.signature.write_text(content)
    assert not is_own(layout)


def test_another_account_has_another_key(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = RunLayout(runs / "tiny")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "somebody"))
    assert not is_own(layout)
    assert sign(layout)
    assert is_own(layout)


def test_where_no_key_can_be_kept_training_goes_on_and_says_so(
    bitnet: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(blocked))
    result = bitnet(*TINY_TRAIN, "--num-steps", 1, "--run-id", "unsigned", "--runs-dir", tmp_path / "runs")
    assert result.code == 0, result.err
    assert "not marked as yours" in result.out
    assert bitnet("evaluate", "unsigned", "--runs-dir", tmp_path / "runs").code == 0, (
        "it names nothing outside"
    )
