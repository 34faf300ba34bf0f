"""Phase two of one arm, by the project's own parts in a plain loop that can be stopped, and how long its step takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from medfusion_monai.data.training.stream import SeededDataset
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.losses.denoising import DiffusionLoss
from medfusion_monai.networks.unet import UNet
from medfusion_monai.runtime.seeds import derive_seed
from medfusion_monai.training.handlers.ema import AveragedWeights
from medfusion_monai.training.learning_rate import warmup_decay
from medfusion_monai.training.prepare_batch import DiffusionPrepareBatch
from medfusion_monai.weights.state_dict import save_atomically
from study.arms import Arm
from study.extra_losses import AlignmentHead, ContrastiveLoss, Dropout, Middle, alignment_loss
from study.material import Material

MEASURED_STEPS = 25
WARM_STEPS = 3
LAST_LOSSES = 50
CHECKPOINT_SECONDS = 120.0
"""Between checkpoints; where they fall changes nothing."""


class Trained(NamedTuple):
    """Weights of a training so far, and what it took."""

    averaged: dict[str, Tensor]
    raw: dict[str, Tensor]
    record: dict[str, Any]


class Training:
    """The training of an arm, step by step.

    Args:
        arm: its recipe.
        material: what it is trained on.
        seed: of first weights, order, noise, timesteps and label dropout; the same for all arms.
        steps: of the whole training, which the learning rate's fall needs to know.

    Attributes:
        done: steps so far.
    """

    def __init__(self, arm: Arm, material: Material, seed: int, steps: int) -> None:
        recipe = material.recipe
        self.arm, self.seed, self.steps, self.done = arm, seed, steps, 0
        self.cpu_seconds, self.losses = 0.0, list[float]()
        self.schedule = NoiseSchedule(**arm.schedule)
        self.loss = DiffusionLoss(self.schedule, **arm.loss)
        self.network = make_unet(arm, material, seed).train()
        self.average = AveragedWeights(self.network)
        self.contrastive = (
            ContrastiveLoss(self.loss, arm.contrastive, self.schedule.prediction_type) if arm.contrastive else None
        )
        # After the average, whose copy of the network would otherwise have a copy of the hooks.
        self.dropout = Dropout(self.network, arm.dropout, seed) if arm.dropout else None
        self.head, self.features = None, material.training.features
        if arm.alignment:
            assert self.features is not None
            self.middle, self.head = Middle(self.network), make_head(recipe, self.features.shape[1], seed)
        self.learned = nn.ModuleList([self.network, *([] if self.head is None else [self.head])])
        learning_rate = recipe["diffusion_lr"] * arm.lr_factor
        self.optimizer = torch.optim.AdamW(self.learned.parameters(), lr=learning_rate, fused=True)
        warmup = min(recipe["diffusion_lr_warmup"], max(1, steps // 5))
        self.lr = warmup_decay(self.optimizer, warmup, steps, recipe["diffusion_lr_decay"])
        self.prepare = DiffusionPrepareBatch(material.autoencoder, self.schedule, recipe["label_dropout"])
        self.max_norm, self.batch_size = recipe["max_grad_norm"], recipe["diffusion_batch_size"]
        training = material.training
        items = [
            {"moments": moments, "label": label}
            for moments, label in zip(training.moments, training.labels, strict=True)
        ]
        self.stream = SeededDataset(items, seed=seed)

    def batch(self, number: int) -> dict[str, Any]:
        """Return the batch of a step, from 0 on."""
        positions = range(number * self.batch_size, (number + 1) * self.batch_size)
        batch: dict[str, Any] = default_collate([self.stream[position] for position in positions])
        if self.head is not None and self.features is not None:
            places = [divmod(position, len(self.stream)) for position in positions]
            batch["features"] = self.features[[int(self.stream.order(passes)[place]) for passes, place in places]]
        return batch

    def step(self) -> float:
        """Take one step and give its loss.

        Raises:
            FloatingPointError: if the loss is not finite.
        """
        start = time.process_time()
        batch = self.batch(self.done)
        noisy, target, _, condition = self.prepare(batch, torch.device("cpu"))
        if self.dropout is not None:
            self.dropout.start(self.done)
        loss = self._loss(self.network(noisy, **condition), target, condition, batch)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"{self.arm.name}, seed {self.seed}, step {self.done}: the loss is {float(loss)}")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.learned.parameters(), self.max_norm)
        self.optimizer.step()
        self.lr.step()
        self.average.update()
        self.done += 1
        self.losses = [*self.losses[1 - LAST_LOSSES :], float(loss.detach())]
        self.cpu_seconds += time.process_time() - start
        return self.losses[-1]

    def _loss(self, prediction: Tensor, target: Tensor, condition: Mapping[str, Tensor], batch: Any) -> Tensor:
        timesteps = condition["timesteps"]
        if self.contrastive is not None:
            kept = condition["class_labels"] >= 0
            return self.contrastive(prediction, target, timesteps, batch["label"], kept)
        loss: Tensor = self.loss(prediction, target, timesteps)
        if self.head is not None:
            projected = self.head(self.middle.output)
            loss = loss + self.arm.alignment * alignment_loss(projected, batch["features"].float())
        return loss

    def trained(self) -> Trained:
        """Return the weights so far, and what they took."""
        record = {
            "arm": self.arm.name,
            "seed": self.seed,
            "steps": self.done,
            "of_steps": self.steps,
            "cpu_seconds": round(self.cpu_seconds, 1),
            "last_loss": statistics.mean(self.losses),
        }
        return Trained(self.average.module.state_dict(), self.network.state_dict(), record)

    def state_dict(self) -> dict[str, Any]:
        """Return all that a training needs to go on."""
        return {
            "learned": self.learned.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "lr": {name: getattr(self.lr, name) for name in ("last_epoch", "_step_count")},
            "progress": {name: getattr(self, name) for name in ("done", "cpu_seconds", "losses", "steps")},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of a training of the same arm, seed and steps."""
        assert state["progress"]["steps"] == self.steps
        self.learned.load_state_dict(state["learned"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.lr.load_state_dict(state["lr"])
        for name, value in state["progress"].items():
            setattr(self, name, value)


def train(
    arm: Arm, material: Material, seed: int, steps: int, until: int | None = None, checkpoint: Path | None = None
) -> Trained:
    """Train an arm until a step, from its start or from a checkpoint, and leave a checkpoint of that step.

    Args:
        arm: its recipe.
        material: what it is trained on.
        seed: of the training.
        steps: of the whole training.
        until: the step to stop after; None for the last.
        checkpoint: its file; None for none. One of a later step is not used.
    """
    training, until = Training(arm, material, seed, steps), steps if until is None else until
    if checkpoint is not None and checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True)
        if state["progress"]["done"] <= until:
            training.load_state_dict(state)
    saved = time.monotonic()
    while training.done < until:
        training.step()
        due = training.done == until or time.monotonic() - saved > CHECKPOINT_SECONDS
        if checkpoint is not None and due:
            save_atomically(training.state_dict(), checkpoint)
            saved = time.monotonic()
    return training.trained()


def make_unet(arm: Arm, material: Material, seed: int = 0) -> UNet:
    """Make the network of an arm; arms of a seed start from the same weights."""
    recipe = material.recipe
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("quality study", seed))
        return UNet(
            in_channels=material.latent_shape[0],
            channels=recipe["unet_channels"],
            num_classes=len(recipe["class_names"]),
            embedding_channels=recipe["unet_embedding_channels"],
            norm_groups=recipe["unet_norm_groups"],
            **arm.unet,
        )


def make_head(recipe: Mapping[str, Any], features: int, seed: int) -> AlignmentHead:
    """Make the head that maps the middle of the UNet to features."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("alignment head", seed))
        return AlignmentHead(recipe["unet_channels"][-1], features)


def measure_steps(
    arms: Sequence[Arm],
    material_of: Callable[[Arm], Material],
    known: Mapping[str, float],
    rounds: int = MEASURED_STEPS,
    warm: int = WARM_STEPS,
) -> dict[str, float]:
    """Measure the processor seconds of a step of each arm that is not known yet.

    Steps of the arms alternate, so that other programs slow all of them alike; the figure is the median. What is
    measured later is scaled by the first arm of then and of now.

    Args:
        arms: the first is always among those that are known.
        material_of: gives an arm its material.
        known: seconds by arm.
        rounds: steps of each arm.
        warm: steps before them that do not count.
    """
    first = arms[0]
    missing = [arm for arm in arms[1:] if arm.name not in known]
    if first.name in known and not missing:
        return dict(known)
    trainings = [Training(arm, material_of(arm), 0, 1000) for arm in (first, *missing)]
    seconds = dict(
        zip(
            [arm.name for arm in (first, *missing)],
            interleaved_medians([each.step for each in trainings], rounds, warm),
            strict=True,
        )
    )
    scale = known.get(first.name, seconds[first.name]) / seconds[first.name]
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
