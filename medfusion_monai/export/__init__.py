"""Export of trained models: weights or a pipeline with a card, programs that run without this package, bundles."""

from medfusion_monai.export.diffusers_folder import export_pipeline
from medfusion_monai.export.programs import export_programs
from medfusion_monai.export.safetensors_folder import export_weights

__all__ = ["export_pipeline", "export_programs", "export_weights"]
