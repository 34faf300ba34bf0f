"""Export of trained models: weights with a card, programs that run without this package, whole bundles."""

from medfusion_monai.export.programs import export_programs
from medfusion_monai.export.safetensors_folder import export_weights

__all__ = ["export_programs", "export_weights"]
