"""Additions to MONAI's bundle runner for the configs: the bundle's folder, command-line values, reading of files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medfusion_monai.bundle.overrides import accept_overrides
    from medfusion_monai.bundle.root import beside, find_root

__all__ = [
    "accept_overrides",
    "beside",
    "find_root",
]


def __getattr__(name: str) -> Any:
    """Import these functions on first use: ``medfusion check`` refuses unknown keys without importing MONAI."""
    if name == "accept_overrides":
        from medfusion_monai.bundle.overrides import accept_overrides

        return accept_overrides
    if name in __all__:
        from medfusion_monai.bundle import root

        return getattr(root, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
