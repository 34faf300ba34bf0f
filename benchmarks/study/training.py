"""Phase two of one arm, by the project's own parts in a plain loop, and how long its step takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from medfusion_monai.data.training.stream import SeededDataset, StreamSampler
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.losses.denoising import DiffusionLoss
from medfusion_monai.networks.unet import UNet
from medfusion_monai.runtime.seeds import derive_seed
from medfusion_monai.training.handlers.ema import AveragedWeights
from medfusion_monai.training.learning_rate import warmup_decay
from medfusion_monai.training.prepare_batch import DiffusionPrepareBatch
from study.arms import BASELINE, Arm
from study.material import Material

MEASURED_STEPS = 25
WARM_STEPS = 3


class Trained(NamedTuple):
    """Weights of a finished training, and what it took."""

    averaged: dict[str, Tensor]
    raw: dict[str, Tensor]
    record: dict[str, Any]


class Training:
    """The training of an arm, step by step.

    Args:
        arm: its recipe.
        material: what all arms share.
        seed: of first weights, order, noise, timesteps and label dropout; the same for all arms.
        steps: of the whole training, which the learning rate's fall needs to know.
    """

    def __init__(self, arm: Arm, material: Material, seed: int, steps: int) -> None:
        recipe = material.recipe
        self.schedule = NoiseSchedule(**arm.schedule)
        self.loss = DiffusionLoss(self.schedule, **arm.loss)
        self.network = make_unet(arm, recipe, seed).train()
        self.average = AveragedWeights(self.network)
        learning_rate = recipe["diffusion_lr"] * arm.lr_factor
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=learning_rate, fused=True)
        warmup = min(recipe["diffusion_lr_warmup"], max(1, steps // 5))
        self.lr = warmup_decay(self.optimizer, warmup, steps, recipe["diffusion_lr_decay"])
        self.prepare = DiffusionPrepareBatch(material.autoencoder, self.schedule, recipe["label_dropout"])
        self.max_norm = recipe["max_grad_norm"]
        training = material.training
        items = [
            {"moments": moments, "label": label}
            for moments, label in zip(training.moments, training.labels, strict=True)
        ]
        sampler = StreamSampler(recipe["diffusion_batch_size"])
        self.batches = iter(DataLoader(SeededDataset(items, seed=seed), batch_sampler=sampler))

    def step(self) -> float:
        """Take one step and give its loss.

        Raises:
            FloatingPointError: if the loss is not finite.
        """
        noisy, target, _, condition = self.prepare(next(self.batches), torch.device("cpu"))
        loss = self.loss(self.network(noisy, **condition), target, condition["timesteps"])
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {float(loss)}")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)
        self.optimizer.step()
        self.lr.step()
        self.average.update()
        return float(loss.detach())


def make_unet(arm: Arm, recipe: Mapping[str, Any], seed: int = 0) -> UNet:
    """Make the network of an arm; arms of a seed start from the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("quality study", seed))
        return UNet(
            in_channels=recipe["latent_channels"],
            channels=recipe["unet_channels"],
            num_classes=len(recipe["class_names"]),
            embedding_channels=recipe["unet_embedding_channels"],
            norm_groups=recipe["unet_norm_groups"],
            **arm.unet,
        )


def train(arm: Arm, material: Material, seed: int, steps: int) -> Trained:
    """Train an arm from the start to the end."""
    start, clock = time.process_time(), time.monotonic()
    training = Training(arm, material, seed, steps)
    losses = [training.step() for _ in range(steps)]
    record = {
        "arm": arm.name,
        "seed": seed,
        "steps": steps,
        "cpu_seconds": round(time.process_time() - start, 1),
        "clock_seconds": round(time.monotonic() - clock, 1),
        "last_loss": statistics.mean(losses[-50:]),
    }
    return Trained(training.average.module.state_dict(), training.network.state_dict(), record)


def measure_steps(arms: Sequence[Arm], material: Material, known: Mapping[str, float]) -> dict[str, float]:
    """Measure the processor seconds of a step of each arm that is not known yet.

    Steps of the arms alternate, so that other programs slow all of them alike; the figure is the median. What is
    measured later is scaled by the baseline of then and of now.
    """
    baseline = next(arm for arm in arms if arm.name == BASELINE)
    missing = [arm for arm in arms if arm.name not in known and arm is not baseline]
    if BASELINE in known and not missing:
        return dict(known)
    trainings = [Training(arm, material, 0, 1000) for arm in (baseline, *missing)]
    seconds = dict(
        zip(
            [arm.name for arm in (baseline, *missing)],
            interleaved_medians([each.step for each in trainings], MEASURED_STEPS, WARM_STEPS),
            strict=True,
        )
    )
    scale = known.get(BASELINE, seconds[BASELINE]) / seconds[BASELINE]
    return {**{name: value * scale for name, value in seconds.items()}, **known}


def interleaved_medians(functions: Sequence[Callable[[], Any]], rounds: int, warm: int = 0) -> list[float]:
    """Median processor seconds of each function, called in turn."""
    measured: list[list[float]] = [[] for _ in functions]
    for _ in range(warm + rounds):
        for function, values in zip(functions, measured, strict=True):
            start = time.process_time()
            function()
            values.append(time.process_time() - start)
    return [statistics.median(values[warm:]) for values in measured]
