"""The library is found, compiled or done without; and nobody else's is ever loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitnet.errors import ConfigError
from bitnet.kernels import compiler, library
from bitnet.kernels.library import FASTEST_FIRST, PATHS, Loaded, describe, loaded, path

pytest_plugins = ["kernel_paths"]  # fixtures: path, use, empty_cache


@pytest.fixture(autouse=True)
def _compiler() -> None:
    try:
        compiler.find_compiler()
    except compiler.CompileError as error:
        pytest.skip(str(error))


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The targets of every compilation from here on."""
    targets: list[Path] = []
    real = compiler.compile_library

    def counted(target: Path) -> None:
        targets.append(target)
        real(target)

    monkeypatch.setattr(library, "compile_library", counted)
    return targets


def again() -> Loaded:
    """What the next process would find."""
    library._load_once.cache_clear()
    return loaded()


def kept(home: Path) -> list[Path]:
    return sorted(home.glob("bitnet/kernels-*/*"))


def test_it_is_compiled_once_and_then_found(empty_cache: Path, compilations: list[Path]) -> None:
    first = loaded()
    assert first.library is not None
    assert first.paths[0] == "scalar"
    folder = empty_cache / "bitnet" / f"kernels-{compiler.identity()}"
    assert first.note == f"in {folder}"
    assert len(kept(empty_cache)) == 1
    assert folder.stat().st_mode & 0o777 == 0o700
    assert kept(empty_cache)[0].stat().st_mode & 0o777 == 0o700
    assert again().note == first.note
    assert len(compilations) == 1
    assert not compilations[0].exists()


@pytest.mark.slow
def test_a_library_that_was_cut_short_is_compiled_anew(empty_cache: Path, compilations: list[Path]) -> None:
    """Loading half a file kills the interpreter with a bus error; the name holds the digest of the whole."""
    loaded()
    file = kept(empty_cache)[0]
    whole = file.read_bytes()
    file.unlink()  # this process runs the old file; cutting that one would kill the test
    file.write_bytes(whole[:5000])
    file.chmod(0o700)
    assert again().library is not None
    assert len(compilations) == 2
    assert len(list(library._intact(file.parent))) == 1


def plant(home: Path) -> Path:
    """A file that stands for another user's library, under a name that fits its content."""
    folder = home / "bitnet" / f"kernels-{compiler.identity()}"
    folder.mkdir(parents=True, mode=0o700)
    content = b"not a library"
    file = folder / f"ternary-{library.sha256_of(content)}.so"
    file.write_bytes(content)
    return file


@pytest.mark.slow
@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_folder_that_others_can_write_to_is_not_used(
    empty_cache: Path, compilations: list[Path], monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    file = plant(empty_cache)
    opened: list[Path] = []
    real = library._open
    monkeypatch.setattr(library, "_open", lambda found, note: opened.append(found) or real(found, note))
    for folder in (
        file.parent,
        empty_cache,
    ):  # the folder itself, or one above it: its name could be given to another
        folder.chmod(mode)
        here = again()
        assert here.library is not None
        assert (
            f"compiled for this process only: other users can write to {folder}; run chmod go-w" in here.note
        )
        folder.chmod(0o700)
    assert file not in opened
    assert kept(empty_cache) == [file]


@pytest.mark.slow
def test_a_folder_or_library_of_another_user_is_not_used(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded()
    real = os.geteuid()
    monkeypatch.setattr(library.os, "geteuid", lambda: real + 1)  # now both are somebody else's
    assert "belongs to another user; set XDG_CACHE_HOME" in again().note
    assert list(library._intact(kept(empty_cache)[0].parent)) == []


@pytest.mark.slow
def test_a_library_that_others_can_write_to_or_a_link_is_not_used(empty_cache: Path) -> None:
    loaded()
    file = kept(empty_cache)[0]
    file.chmod(0o722)
    assert list(library._intact(file.parent)) == []
    file.chmod(0o700)
    assert list(library._intact(file.parent)) == [file]
    moved = file.rename(empty_cache / "elsewhere.so")
    file.symlink_to(moved)
    assert list(library._intact(file.parent)) == []


@pytest.mark.slow
def test_a_folder_that_cannot_be_made_costs_a_compilation_only(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a user without a home, or on a read-only disk: here the name is taken by a file."""
    (empty_cache / "bitnet").write_text("")
    here = loaded()
    assert here.library is not None
    assert "compiled for this process only: the cache folder cannot be made" in here.note


@pytest.mark.slow
def test_a_full_disk_costs_a_compilation_only(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(content: bytes, folder: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(library, "_keep", full)
    assert "cannot be used (No space left on device)" in loaded().note
    assert loaded().library is not None


@pytest.mark.slow
def test_processes_that_start_at_once_share_one_whole_library(empty_cache: Path) -> None:
    """Each compiles aside and renames; the digest of what is left fits its name."""
    script = (
        "from bitnet.kernels import compiler, library; compiler.OPTIMIZATION = {!r}; print(library.path(), "
        "library.loaded().note)"
    )
    command = [sys.executable, "-c", script.format(compiler.OPTIMIZATION)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) for _ in range(2)]
    answers = {process.communicate(timeout=120)[0] for process in started}
    assert answers == {f"{path()} in {empty_cache}/bitnet/kernels-{compiler.identity()}\n"}
    files = kept(empty_cache)
    assert files
    assert list(library._intact(files[0].parent)) == files  # every one whole, and no temporary file left


@pytest.mark.parametrize(
    ("cc", "reason"), [("/no/such/cc", "is not installed"), ("false", "C compiler false failed")]
)
def test_without_a_compiler_torch_does_the_work(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch, cc: str, reason: str
) -> None:
    monkeypatch.setenv("CC", cc)
    assert path() == "torch"
    assert loaded().library is None
    assert describe().startswith("kernels: torch, ")
    assert reason in describe()
    assert "\n" not in describe()
    monkeypatch.setenv("BITNET_KERNEL", "scalar")
    with pytest.raises(
        ConfigError, match=r"BITNET_KERNEL=scalar needs the compiled kernels .*; unset it, or set it to torch"
    ):
        path()


@pytest.mark.slow
def test_a_library_built_with_the_package_needs_no_compiler(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = tmp_path / "ternary.c"
    source.write_bytes(compiler.SOURCE.read_bytes())
    compiler.compile_library(source.with_name(f"ternary-{compiler.identity()}.so"))
    monkeypatch.setattr(library, "SOURCE", source)
    monkeypatch.setenv("CC", "/no/such/cc")
    assert loaded().note == "built with the package"
    assert kept(empty_cache) == []


def test_the_fastest_path_of_this_cpu_is_taken(use: Callable[[Any, str], None]) -> None:
    use(Loaded(None, "", PATHS), "")
    assert path() == "avx512_vnni"
    use(Loaded(None, "", ("scalar", "neon")), "")
    assert path() == "neon"
    assert set(FASTEST_FIRST) == set(PATHS)


def test_a_path_that_is_none_or_not_of_this_cpu_is_a_clear_error(use: Callable[[Any, str], None]) -> None:
    use(None, "avx1024")
    with pytest.raises(ConfigError, match='BITNET_KERNEL="avx1024" names no kernel path'):
        path()
    missing = next(name for name in PATHS if name not in loaded().paths)
    use(None, missing)
    with pytest.raises(
        ConfigError, match=f"BITNET_KERNEL={missing}: this CPU or build has only scalar.*; unset it"
    ):
        path()


def test_torch_can_be_forced(use: Callable[[Any, str], None]) -> None:
    use(None, "torch")
    assert path() == "torch"
    assert describe() == "kernels: torch, because BITNET_KERNEL=torch"


def test_c_refuses_a_path_that_the_cpu_lacks() -> None:
    """The last line of defence against an illegal instruction: status 3, nothing done."""
    here = loaded()
    assert here.library is not None
    missing = next(name for name in PATHS if name not in here.paths)
    for number in (PATHS.index(missing), -1, len(PATHS)):
        assert here.library.ternary_sums(number, None, 16, 16, None, 1, None, 1) == 3
        assert here.library.ternary_quantize(number, None, 0, 1, 16, None, 0.0, None, None, None, 1) == 3


@pytest.mark.slow
def test_loading_imports_neither_torch_nor_numpy() -> None:
    command = (
        "import sys; from bitnet.kernels import library; library.path(); print({'torch', 'numpy'} & "
        "set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
