"""What a study consists of and what it takes, from the measured step of each arm."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from medfusion_monai.evaluation.metrics.classifier import LabelledImages, train_classifier
from medfusion_monai.evaluation.metrics.fidelity import measure_fidelity
from medfusion_monai.networks.autoencoder import LatentAutoencoder
from study.arms import Arm
from study.evaluation import CLASSIFIER_SEEDS, LOG_SNR, MOST_CLEAN
from study.material import Material, Split, decode, encode, middle_grid
from study.protocol import Protocol
from study.running import steps_of
from study.training import make_unet, measure_steps
from study.variants import variants_of

ROUNDS, WARM = 5, 1
IMAGES = 8
CLASSIFIER_STEPS: int = inspect.signature(train_classifier).parameters["steps"].default


class Costs(NamedTuple):
    """Processor seconds of one thread.

    Attributes:
        step: of a training, by arm.
        call: of the UNet, for each image.
        encode: of an image.
        decode: of an image.
        features: of an image.
        figures: of comparing a sample with the training images.
        classifier: of training one.
    """

    step: Mapping[str, float]
    call: float
    encode: float
    decode: float
    features: float
    figures: float
    classifier: float


def measure_costs(
    arms: Sequence[Arm],
    recipe: Mapping[str, Any],
    autoencoders: Mapping[str, LatentAutoencoder],
    extractor: Any,
    counts: tuple[int, int],
    known: Mapping[str, float],
) -> Costs:
    """Measure what a study takes, on random images and latents.

    Args:
        arms: the first is the reference.
        recipe: of the bundle.
        autoencoders: by the name that arms have for them.
        extractor: of features.
        counts: numbers of training images and of samples.
        known: seconds of a step by arm that the study has measured.
    """
    materials: dict[tuple[Any, ...], Material] = {}

    def material_of(arm: Arm) -> Material:
        key = (arm.autoencoder, bool(arm.alignment))
        if key not in materials:
            materials[key] = random_material(recipe, autoencoders[arm.autoencoder], extractor, bool(arm.alignment))
        return materials[key]

    step = measure_steps(arms, material_of, known, ROUNDS, WARM)
    material = material_of(arms[0])
    unet, shape = make_unet(arms[0], material).eval(), (IMAGES, *material.latent_shape)
    latents, times, labels = torch.randn(shape), torch.zeros(IMAGES), torch.zeros(IMAGES, dtype=torch.long)
    images = torch.rand(IMAGES, recipe["image_channels"], *recipe["image_size"])
    labelled = LabelledImages(images, torch.arange(IMAGES) % len(recipe["class_names"]))
    real, fake = (torch.rand(count, extractor.dimensions) for count in counts)
    classes = len(recipe["class_names"])
    classifier = seconds_of(lambda: train_classifier(labelled, classes, steps=ROUNDS)) * CLASSIFIER_STEPS / ROUNDS
    with torch.no_grad():
        return Costs(
            step,
            seconds_of(lambda: unet(latents, timesteps=times, class_labels=labels)) / IMAGES,
            seconds_of(lambda: encode(material.autoencoder, images)) / IMAGES,
            seconds_of(lambda: decode(material.autoencoder, latents)) / IMAGES,
            seconds_of(lambda: extractor(images)) / IMAGES,
            seconds_of(lambda: measure_fidelity(real, fake, replicates=0), 0),
            classifier,
        )


def random_material(
    recipe: Mapping[str, Any], autoencoder: LatentAutoencoder, extractor: Any, with_features: bool
) -> Material:
    """Return random latents and features of the shapes of a study, enough for a few batches."""
    count = 2 * recipe["diffusion_batch_size"]
    channels, *sides = autoencoder.latent_shape(recipe["image_size"])
    labels = [index % len(recipe["class_names"]) for index in range(count)]
    features: Tensor | None = None
    if with_features:
        features = torch.rand(count, extractor.dimensions, *middle_grid(sides, len(recipe["unet_channels"]))).half()
    split = Split(torch.zeros(0), labels, torch.rand(count, 2 * channels, *sides).half(), features)
    return Material(recipe, autoencoder, split, split)


def seconds_of(work: Callable[[], object], warm: int = 1) -> float:
    """Return the processor seconds of a call."""
    for _ in range(warm):
        work()
    start = time.process_time()
    work()
    return time.process_time() - start


def plan_text(
    costs: Costs,
    arms: Sequence[Arm],
    seeds: Sequence[int],
    seconds: float,
    counts: Mapping[str, int],
    protocol: Protocol,
    skipped: Mapping[str, str],
    flips: Sequence[str] = (),
) -> str:
    """Say what a study consists of and what it takes.

    Args:
        costs: of its parts.
        arms: that are run.
        seeds: of each arm.
        seconds: of each training.
        counts: numbers of ``training`` and ``held_out`` images and of ``samples``.
        protocol: how the study goes.
        skipped: arms that are not run, with the reason.
        flips: ``latent_flips`` of the bundle.
    """
    hours = {name: part / 3600 for name, part in parts(costs, arms, seeds, seconds, counts, protocol, flips).items()}
    steps = steps_of(costs.step, seconds)
    lengths = " and ".join(f"{length:.0%}" for length in protocol.lengths)
    lines = [
        f"{len(arms)} arms, {len(seeds)} seeds, {seconds:g} processor seconds for each training, measured after "
        f"{lengths} of its steps on {counts['samples']} samples; the arms are compared with {protocol.reference}:"
    ]
    lines += [f"  {arm.name:12} {costs.step[arm.name]:7.3f} s x {steps[arm.name]:6} {arm.words}" for arm in arms]
    lines += [f"  {name:12} not run: {why}" for name, why in skipped.items()]
    lines += ["Hours of one core, from these steps:", *(f"  {hour:6.1f} {name}" for name, hour in hours.items())]
    total = sum(hours.values())
    return "\n".join([*lines, f"  {total:6.1f} in all; {total / 2:.1f} if the same command is started on two cores"])


def parts(
    costs: Costs,
    arms: Sequence[Arm],
    seeds: Sequence[int],
    seconds: float,
    counts: Mapping[str, int],
    protocol: Protocol,
    flips: Sequence[str] = (),
) -> dict[str, float]:
    """Return the processor seconds of the parts of a study; the arguments are those of ``plan_text``."""
    steps = steps_of(costs.step, seconds)
    samples, training = counts["samples"], counts["training"]
    encoded = {(arm.autoencoder, name) for arm in arms for name in variants_of(arm.augmentation, flips)}
    mapped = {name for arm in arms if arm.alignment for name in variants_of(arm.augmentation, flips)}
    images = len(encoded) * training + len({arm.autoencoder for arm in arms}) * counts["held_out"]
    classifiers = len(CLASSIFIER_SEEDS) * costs.classifier
    clean = len(LOG_SNR) * min(MOST_CLEAN, counts["held_out"]) * costs.call
    calls = protocol.unet_calls(arms, seeds)
    sampled = samples * (costs.call * sum(calls) + (costs.decode + costs.features) * len(calls))
    return {
        "encoding and features": images * costs.encode + (1 + len(mapped)) * training * costs.features + classifiers,
        "training": len(seeds) * sum(steps[arm.name] * costs.step[arm.name] for arm in arms),
        "sampling and measuring": sampled
        + len(calls) * costs.figures
        + clean * len(arms) * len(seeds) * len(protocol.lengths),
    }
