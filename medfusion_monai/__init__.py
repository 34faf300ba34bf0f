"""Class-conditional latent diffusion of 2D medical images, as MONAI bundles.

``load`` opens a trained model: ``medfusion_monai.load("models/model.pt").sample("cardiomegaly", n=4, seed=0)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medfusion_monai.model import Model, load

__version__ = "0.1.0"
__all__ = ["Model", "load"]


def __getattr__(name: str) -> Any:
    """Import the Python API when it is first asked for: the command line starts without PyTorch."""
    if name in __all__:
        from medfusion_monai import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
