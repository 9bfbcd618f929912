"""Build hook: compile the kernels into the wheel where there is a C compiler, and tag the wheel for the
platform.

Without a compiler the wheel is pure, and the kernels are compiled where it is used, or torch does their work.
An editable install changes nothing: there the library is compiled at first use into the cache folder
(bitnet.kernels.library).
"""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import platform_tags


class KernelsHook(BuildHookInterface):  # type: ignore[type-arg, misc, unused-ignore]
    """Adds src/bitnet/kernels/ternary-<identity>.so to a wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it collects the files; version is "standard" or "editable"."""
        if version == "editable":
            return

        compiler = load_compiler(Path(self.root))
        self.folder = tempfile.TemporaryDirectory(
            prefix="bitnet-kernels-"
        )  # until finalize: the file is read after this returns
        library = Path(self.folder.name) / f"ternary-{compiler.identity()}.so"
        try:
            compiler.compile_library(library)
        except compiler.CompileError as error:
            self.app.display_warning(f"{error}; this wheel is without compiled kernels")
            return

        build_data["force_include"][str(library)] = f"bitnet/kernels/{library.name}"
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{next(platform_tags())}"  # ctypes: no Python version matters

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Called when the wheel is written."""
        if version != "editable":
            self.folder.cleanup()


def load_compiler(root: Path) -> ModuleType:
    """bitnet.kernels.compiler by its path: the package and what it depends on are not installed here."""
    spec = importlib.util.spec_from_file_location("kernels_compiler", root / "src/bitnet/kernels/compiler.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
