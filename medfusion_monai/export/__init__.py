"""Export of trained networks for programs without this package, and with ONNX without PyTorch."""

from medfusion_monai.export.bundle import export_bundle

__all__ = ["export_bundle"]
