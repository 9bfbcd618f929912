"""Which code, machine and seeds made a run."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def provenance(
    run_id: str,
    seed: int,
    *,
    device: str,
    product: str,
    input_gradient: str,
    weight_gradient: str,
    gradient_dtype: str,
    compiled: bool,
    fused_loss: bool,
    fused_blocks: bool,
    precision_timed: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """meta/provenance.json: the seeds' keys, then what else decides a result."""
    import torch

    cuda = torch.cuda.is_available()
    commit, dirty = _git()
    return {
        "git_commit": commit,
        "git_dirty": dirty,
        "python_version": platform.python_version(),
        "torch_version": torch.__version__,
        "cuda_version": torch.version.cuda,
        "gpu_model": torch.cuda.get_device_name() if cuda else None,
        "gpu_count": torch.cuda.device_count(),
        # The plan asks for a seed of data workers too; rows are made in this process, from the same one.
        "seeds": {"python": seed, "numpy": seed, "torch": seed, "cuda": seed, "dataloader_worker": seed},
        "timestamp_utc": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "run_id": run_id,
        "device": device,
        "cpu_model": cpu_model(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "linear_product": product,
        "input_gradient": input_gradient,
        "weight_gradient": weight_gradient,
        "gradient_dtype": gradient_dtype,
        "compiled": compiled,
        "fused_loss": fused_loss,
        "fused_blocks": fused_blocks,
        "precision_timed": precision_timed,
    }


def _git() -> tuple[str | None, bool | None]:
    """Commit of this package's checkout and whether it has uncommitted changes; None outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10, check=True
        )
        status = subprocess.run(
            ["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None, None
    return commit.stdout.strip(), bool(status.stdout.strip())


def cpu_model() -> str:
    """The processor's name as the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def resident_gb() -> float | None:
    """Memory of this process in GB (10^9 bytes), where the system tells (Linux)."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e9
