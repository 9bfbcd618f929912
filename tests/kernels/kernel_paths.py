"""Libraries for tests: each path of this CPU, and AVX-VNNI by the AVX-512 encoding where only that one is
there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bitnet.kernels import compiler, library
from bitnet.kernels.library import PATHS, Loaded


@pytest.fixture(scope="session")
def avx_vnni_library(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """The code of the AVX-VNNI path with the AVX-512 encoding of its one instruction."""
    if "avx512_vnni" not in library.loaded().paths:
        pytest.skip("this CPU has neither AVX-VNNI nor AVX-512 VNNI")
    target = tmp_path_factory.mktemp("avx_vnni") / "ternary.so"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "FLAGS", (*compiler.FLAGS, "-DTERNARY_AVX_VNNI_BY_AVX512"))
        compiler.compile_library(target)
    return library._open(target, "test build")


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Loaded | None, str], None]]:
    """A function that makes this process use a library (None: the one that it finds) and a path."""

    def use_path(loaded: Loaded | None, name: str) -> None:
        if loaded is not None:
            monkeypatch.setattr(library, "loaded", lambda: loaded)
        monkeypatch.setenv(library.VARIABLE, name)
        library._choose.cache_clear()

    yield use_path
    library._choose.cache_clear()


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest, use: Callable[[Loaded | None, str], None]) -> str:
    """Every path in turn; those that this CPU lacks skip (NEON runs under an emulator in test_ternary.py)."""
    name: str = request.param
    if library.loaded().library is None:
        pytest.skip(library.describe())
    if name in library.loaded().paths:
        use(None, name)
    elif name == "avx_vnni":
        use(request.getfixturevalue("avx_vnni_library"), name)
    else:
        pytest.skip(f"this CPU has no {name}")
    assert library.path() == name
    return name


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A process that has not looked for a library yet, an empty, private cache folder, and quick
    compilations.
    """
    monkeypatch.setattr(compiler, "OPTIMIZATION", ("-O0",) * len(compiler.OPTIMIZATION))
    home = tmp_path / "cache"
    home.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    monkeypatch.delenv(library.VARIABLE, raising=False)
    library._load_once.cache_clear()
    library._choose.cache_clear()
    yield home
    library._load_once.cache_clear()
    library._choose.cache_clear()
