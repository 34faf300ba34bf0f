"""Quality against the number of sampling steps: figure 7 of the paper."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medfusion_monai.diffusion.inferer import LatentDiffusionSampler
from medfusion_monai.evaluation.metrics.comparison import Comparison
from medfusion_monai.evaluation.metrics.feature_cache import Extraction, kept_features
from medfusion_monai.evaluation.metrics.fidelity import headline_metrics, measure_sets
from medfusion_monai.evaluation.metrics.intervals import Figure
from medfusion_monai.evaluation.metrics.set_metrics import measure_images
from medfusion_monai.networks.medfusion import Medfusion
from medfusion_monai.runtime.distributed import from_first
from medfusion_monai.runtime.dtype import precision_name
from medfusion_monai.runtime.files import file_sha256

IDENTIFYING = (
    "sampler",
    "spacing",
    "guidance_scale",
    "guidance_interval",
    "eta",
    "negative_label",
    "null_label",
    "latent_shape",
)
"""Settings of the sampler that its images depend on, besides the number of steps."""


def guidance_words(sampler: LatentDiffusionSampler) -> str:
    """Return scale and interval of a sampler's guidance in words."""
    words = f"{sampler.guidance_scale:g}"
    if sampler.guidance_interval is None:
        return words
    low, high = sampler.guidance_interval
    return f"{words} at noise levels from {low:g} to {high:g}"


def sweep_identity(
    network: Medfusion, sampler: LatentDiffusionSampler, model_file: str | Path, features: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what the features of a sweep depend on, besides plan and number of steps.

    Args:
        network: with its weights.
        sampler: of the sweep.
        model_file: the weights.
        features: description of the extractor.
    """
    return {
        **{name: getattr(sampler, name) for name in IDENTIFYING},
        "guide": None if sampler.guide is None else sampler.guide.sha256,
        "schedule": [sampler.schedule.prediction_type, sampler.schedule.exact_signal, sampler.schedule.exact_sigma],
        "precision": precision_name(sampler.dtype),
        "network": str(network),  # the groups of a norm, for example, are in no weight
        "weights": file_sha256(model_file),
        "features": features,
    }


def sweep_rows(
    network: Medfusion,
    sampler: LatentDiffusionSampler,
    plan: Sequence[Mapping[str, Any]],
    steps: Sequence[int],
    reference: Tensor,
    extraction: Extraction,
    identity: Mapping[str, Any],
    replicates: int = 100,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Sample the same images with each number of steps and compare their features with the reference's.

    Only features are stored, as soon as those of a number of steps are complete, so a stopped sweep resumes.

    Args:
        network: autoencoder and UNet.
        sampler: with all settings but the number of steps.
        plan: of ``sampling_plan``: ``label`` and ``seed`` of each image.
        steps: numbers of sampling steps.
        reference: features (N, D) of the real images.
        extraction: how features are computed, and the folder that keeps them.
        identity: of ``sweep_identity``.
        replicates: resampled sets per interval.
        seed: of the resampling.

    Returns:
        Rows of a report's sweep.
    """
    rows = []
    for number in steps:
        own = copy.copy(sampler)
        own.num_inference_steps = number
        key = {**identity, "steps": number, "plan": [[item["label"], item["seed"]] for item in plan]}
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        path = Path(extraction.cache_dir or "") / f"sweep_{digest}.features"
        sample = partial(_sampled_features, network, own, plan, extraction)
        fake = torch.from_numpy(kept_features(path, (len(plan), extraction.extractor.dimensions), sample))
        figures = from_first(partial(_headlines, reference, fake, replicates, seed))
        counts = {"num_inference_steps": number, "count": len(plan), "reference_count": len(reference)}
        rows.append(counts | {name: figure.as_dict() for name, figure in figures.items()})
    return rows


def _headlines(reference: Tensor, fake: Tensor, replicates: int, seed: int) -> dict[str, Figure]:
    return measure_sets(Comparison(reference, fake, replicates, seed), headline_metrics())


@torch.no_grad()
def _sampled_features(
    network: Medfusion, sampler: LatentDiffusionSampler, plan: Sequence[Mapping[str, Any]], extraction: Extraction
) -> np.ndarray:
    device, extractor = extraction.device, extraction.extractor

    def measure(places: range) -> Tensor:
        batch = [plan[place] for place in places]
        labels = torch.tensor([item["label"] for item in batch], device=device)
        images = sampler(labels, network, seeds=[item["seed"] for item in batch])
        return extractor((images * 255).round() / 255)  # as inference writes them

    title, size = f"sample with {sampler.num_inference_steps} steps", extraction.batch_size
    return measure_images(measure, len(plan), size, [extractor.dimensions], device, title, bar_from=0).numpy()
