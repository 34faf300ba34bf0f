"""Export of trained networks: weights with a card, or programs that need no part of this package."""

from medfusion_monai.export.bundle import export_bundle
from medfusion_monai.export.weights import export_weights

__all__ = ["export_bundle", "export_weights"]
