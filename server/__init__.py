"""Canary over HTTP, on the command line, and for Python users: `from server import Canary`."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from server.canary import Canary

__all__ = ["Canary"]


def __getattr__(name: str) -> Any:
    # On first use: the command line's help should not wait for MLX.
    if name == "Canary":
        from server.canary import Canary

        return Canary
    raise AttributeError(f"module 'server' has no attribute {name!r}")
