"""How figures are said to people. Free of torch, so that `bitnet status` answers at once."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Seconds as 1h02m, 3m20s or 12s."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"
