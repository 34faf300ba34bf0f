"""What is checked before the first step of a training, so that it does not fail after days."""

from medfusion_monai.preflight.checks import PreflightError, check_all
from medfusion_monai.preflight.disk import check_disk, check_writable, latents_bytes, pictures_bytes
from medfusion_monai.preflight.images import check_sample
from medfusion_monai.preflight.machine import check_device, check_versions
from medfusion_monai.preflight.memory import check_memory

__all__ = [
    "PreflightError",
    "check_all",
    "check_device",
    "check_disk",
    "check_memory",
    "check_sample",
    "check_versions",
    "check_writable",
    "latents_bytes",
    "pictures_bytes",
]
