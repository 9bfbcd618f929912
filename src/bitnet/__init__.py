"""Train ternary (1.58-bit) transformers from scratch and see them work.

import bitnet
bitnet.load("arithmetic").complete("25 + 17 = ")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitnet.nn.config import BitNetConfig
    from bitnet.nn.transformer import BitNetTransformer
    from bitnet.trained_model import load

__all__ = ["BitNetConfig", "BitNetTransformer", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import torch only when something that needs it is asked for."""
    if name == "load":
        from bitnet.trained_model import load

        return load
    if name == "BitNetConfig":
        from bitnet.nn.config import BitNetConfig

        return BitNetConfig
    if name == "BitNetTransformer":
        from bitnet.nn.transformer import BitNetTransformer

        return BitNetTransformer
    raise AttributeError(f"module 'bitnet' has no attribute {name!r}")
