"""Sampling to files: which samples, their names, formats and manifest, and those refused as copies."""

from medfusion_monai.sampling.image_formats import suffix_of
from medfusion_monai.sampling.plan import parse_label, sampling_plan
from medfusion_monai.sampling.writer import SampleWriter, sample_settings

__all__ = [
    "SampleWriter",
    "parse_label",
    "sample_settings",
    "sampling_plan",
    "suffix_of",
]
