"""Export of a trained model as programs: a file per network, and the facts needed to sample with them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

import medfusion_monai
from medfusion_monai.diffusion.inferer import LatentDiffusionSampler
from medfusion_monai.diffusion.samplers import SAMPLERS
from medfusion_monai.export.formats import Format, format_named
from medfusion_monai.export.parts import Denoiser, Part, parts_of
from medfusion_monai.export.public import open_model
from medfusion_monai.networks.unet import NO_LABEL
from medfusion_monai.runtime.files import file_sha256, make_folders
from medfusion_monai.weights.model_info import require_latents

FACTS = "sampler.json"
TOLERANCE = 1.0e-4
"""Largest allowed difference from PyTorch, relative to PyTorch's largest value or to 1, whichever is larger."""


def export_programs(model_file: str | Path, output: str | Path, file_format: str = "onnx") -> dict[str, Any]:
    """Write encoder, decoder and UNet of a trained model, each checked against PyTorch, and ``sampler.json``.

    Weights that name a guide bring along its UNet, as ``guide``, in place of the unconditional prediction.

    Images are in [0, 1] and latents have unit variance; batch, height and width are dynamic. Files appear in ``output``
    only if all of them reproduce PyTorch's values.

    Args:
        model_file: weights, or a folder or bundle that contains them.
        output: folder of the files.
        file_format: ``onnx`` or ``torchscript``.

    Returns:
        The content of ``sampler.json``.

    Raises:
        ValueError: for weights that cannot be loaded, missing packages, a network that the format does not support, or
            a file whose values differ from PyTorch's.
    """
    writer = format_named(file_format)
    model = open_model(model_file)
    require_latents(model.path, model.info)
    network, sampler = model.network, model.sampler
    parts = parts_of(network, len(model.class_names), sampler.schedule.num_train_timesteps)
    if sampler.guide is not None:
        parts.append(replace(parts[-1], name="guide", module=Denoiser(sampler.guide.unet).eval()))
    facts = {
        **sampling_facts(sampler),
        "class_names": model.class_names,
        "no_label": NO_LABEL,
        "image_shape": [model.image_channels, *model.image_size],
        "weights_sha256": file_sha256(model.path),
        "version": medfusion_monai.__version__,
    }
    output = Path(output)
    make_folders([output])
    with tempfile.TemporaryDirectory(dir=output, prefix=".export.") as scratch:
        folder = Path(scratch)
        facts["networks"] = {part.name: _write(part, writer, folder, facts["latent_shape"]) for part in parts}
        (folder / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        for path in sorted(folder.iterdir()):
            os.replace(path, output / path.name)
    return facts


def sampling_facts(sampler: LatentDiffusionSampler) -> dict[str, Any]:
    """Return what a program needs to run a sampler by itself, as JSON-compatible data.

    Noisy latents are ``signal * latents + sigma * noise``; both factors are listed for each timestep in use. Weights
    that are tuned for few steps are sampled by DDIM without added noise, and without guidance, which they have learned.

    Args:
        sampler: of a model, with the shape of its latents.
    """
    schedule, timesteps = sampler.schedule, sampler.timesteps
    tuned = SAMPLERS[sampler.sampler].tuned
    return {
        "latent_shape": list(sampler.latent_shape or ()),
        "prediction_type": schedule.prediction_type,
        "num_train_timesteps": schedule.num_train_timesteps,
        "sampler": "ddim" if tuned else sampler.sampler,
        "num_inference_steps": sampler.num_inference_steps,
        "timesteps": timesteps,
        "signal": [schedule.exact_signal[timestep] for timestep in timesteps],
        "sigma": [schedule.exact_sigma[timestep] for timestep in timesteps],
        "guidance_scale": 1.0 if tuned else sampler.guidance_scale,
        "negative_label": sampler.negative_label,
        "guidance_interval": sampler.guidance_interval,
        "guidance_model": None if sampler.guide is None else "guide",
        "eta": sampler.eta,
    }


def largest_difference(part: Part, writer: Format, path: Path, latent_shape: Sequence[int]) -> float:
    """Return the largest difference between a file and PyTorch, as defined for ``TOLERANCE``.

    The inputs are one image of the model's size, and a batch of three of another size.
    """
    _, height, width = latent_shape
    differences = []
    for inputs in (part.draw(1, height, width), part.draw(3, height + 2, width + 1)):
        for actual, expected in zip(writer.run(part, path, inputs), part.run(inputs), strict=True):
            differences.append((actual - expected).abs().max() / expected.abs().max().clamp(min=1.0))
    return float(torch.stack(differences).max())


def _write(part: Part, writer: Format, folder: Path, latent_shape: Sequence[int]) -> dict[str, Any]:
    _, height, width = latent_shape
    path = folder / f"{part.name}{writer.suffix}"
    try:
        writer.write(part, part.draw(2, height, width), path)
        difference = largest_difference(part, writer, path, latent_shape)
    except Exception as error:  # exporters and runtimes have their own error types
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{path.name} cannot be exported for any batch and size: {reason}. Nothing was written; try another format"
        ) from error
    if not difference <= TOLERANCE:  # written so that 'not a number' is refused
        raise ValueError(
            f"{path.name} differs from PyTorch by {difference:.1e}, more than {TOLERANCE:.0e}. Nothing was written; "
            "try another format, or the versions of constraints.txt"
        )
    return {
        "file": path.name,
        "sha256": file_sha256(path),
        "difference_from_pytorch": difference,
        "inputs": [asdict(port) for port in part.inputs],
        "outputs": [asdict(port) for port in part.outputs],
    }
