"""How quality depends on the number of sampling steps: figure 7 of the paper."""

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
from medfusion_monai.evaluation.metrics.feature_cache import kept_features
from medfusion_monai.evaluation.metrics.features import FeatureExtractor
from medfusion_monai.evaluation.metrics.fidelity import measure_fidelity
from medfusion_monai.evaluation.metrics.set_metrics import measure_images
from medfusion_monai.networks.medfusion import Medfusion
from medfusion_monai.runtime.distributed import from_first

SHOWN = ("fid", "precision", "recall")


def sweep_rows(
    network: Medfusion,
    sampler: LatentDiffusionSampler,
    plan: Sequence[Mapping[str, Any]],
    steps: Sequence[int],
    reference: Tensor,
    extractor: FeatureExtractor,
    identity: Mapping[str, Any],
    cache_dir: str | Path,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
    replicates: int = 100,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Sample the same images with each number of steps and compare their features with the reference's.

    The images themselves are not kept. The features of each number of steps are, as soon as they are whole, so that a
    sweep that was stopped resumes.

    Args:
        network: autoencoder and UNet.
        sampler: with all settings but the number of steps.
        plan: of ``sampling_plan``: ``label`` and ``seed`` of each image.
        steps: numbers of sampling steps.
        reference: features (N, D) of the real images.
        extractor: gives the features.
        identity: all that the features depend on beside plan and number, such as the weights' checksum.
        cache_dir: folder of the features.
        batch_size: images that are sampled together.
        device: where to sample.
        replicates: resampled sets behind each interval.
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
        path = Path(cache_dir) / f"sweep_{digest}.features"
        sample = partial(_sampled_features, network, own, plan, extractor, batch_size, device)
        fake = torch.from_numpy(kept_features(path, (len(plan), extractor.dimensions), sample))
        figures = from_first(partial(measure_fidelity, reference, fake, replicates=replicates, seed=seed))
        rows.append(
            {
                "num_inference_steps": number,
                "count": len(plan),
                "reference_count": len(reference),
                **{name: figures[name].as_dict() for name in SHOWN},
            }
        )
    return rows


@torch.no_grad()
def _sampled_features(
    network: Medfusion,
    sampler: LatentDiffusionSampler,
    plan: Sequence[Mapping[str, Any]],
    extractor: FeatureExtractor,
    batch_size: int,
    device: torch.device | str,
) -> np.ndarray:
    def measure(places: range) -> Tensor:
        batch = [plan[place] for place in places]
        labels = torch.tensor([item["label"] for item in batch], device=device)
        images = sampler(labels, network, seeds=[item["seed"] for item in batch])
        return extractor((images * 255).round() / 255)  # as inference writes them

    title = f"sample with {sampler.num_inference_steps} steps"
    return measure_images(measure, len(plan), batch_size, [extractor.dimensions], device, title, bar_from=0).numpy()
