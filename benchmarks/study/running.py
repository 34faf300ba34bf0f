"""A study from its first step to its last figure: what is done is a file, what is left is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.training.handlers.image_grid import grid_of_rows, save_picture
from medfusion_monai.weights.state_dict import save_atomically
from study.arms import BASELINE, GUIDANCE_SCALES, Arm
from study.evaluation import CHECK, FAST, SHIPPED, Judge, clean_error
from study.material import Materials
from study.protocol import Protocol
from study.store import Store
from study.summary import best_arm
from study.training import make_unet, measure_steps, train

SHOWN = 8
LEAST_STEPS = 10
WAIT = 10.0
Weights = dict[str, dict[str, Tensor]]


class Study:
    """What is left to do of a study; several processes may do it together.

    Args:
        store: where results are.
        materials: what the arms share.
        judge: measures images.
        seconds: processor seconds of each training.
        protocol: how the study goes.
    """

    def __init__(self, store: Store, materials: Materials, judge: Judge, seconds: float, protocol: Protocol) -> None:
        self.store, self.materials, self.judge = store, materials, judge
        self.seconds, self.protocol = seconds, protocol

    def run(self, arms: Sequence[Arm], seeds: Sequence[int]) -> None:
        """Train and measure every arm of every seed, seed by seed, and then what the protocol checks.

        Args:
            arms: the first is the reference.
            seeds: one training of each arm each.
        """
        with self.store.alone("preparation"):
            known = measure_steps(arms, self.materials.material, self.store.step_seconds())
            self.store.write_step_seconds(known)
            self.measure_baselines()
        steps = steps_of(known, self.seconds)
        units = [(arm, seed, steps[arm.name]) for seed in seeds for arm in arms]
        self.share({f"{arm.name}.seed{seed}": (arm, seed, number) for arm, seed, number in units}, self.run_arm)
        if self.protocol.with_checks:
            with self.store.alone("checks"):
                self.check(arms, seeds, steps)

    def share(self, units: Mapping[str, tuple[Any, ...]], work: Callable[..., None]) -> None:
        """Do every unit, those that another process is doing last: it may be killed before it is finished."""
        left = dict(units)
        while left:
            for name in list(left):
                with self.store.alone(name, wait=False) as is_ours:
                    if is_ours:
                        work(*left.pop(name))
            if left:
                time.sleep(WAIT)

    def measure_baselines(self) -> None:
        """Measure real images and reconstructions, once."""
        if None in (self.store.read("real"), self.store.read("reconstructed")):
            for name, record in self.judge.baselines().items():
                self.store.write(name, {"kind": "baseline", "name": name, **record})

    def run_arm(self, arm: Arm, seed: int, steps: int) -> None:
        """Train and measure an arm at each length; the published recipe with raw weights too.

        A training whose loss is not finite is a result of its own, and the study goes on without it.
        """
        for length in self.protocol.lengths:
            try:
                weights = self.weights(arm, seed, steps, length)
            except FloatingPointError as error:
                failure = {"kind": "failure", "arm": arm.name, "seed": seed, "length": length, "error": str(error)}
                self.store.write(f"{arm.name}.seed{seed}.failure", failure)
                say(str(error))
                return
            for kind in weights:
                self.evaluate(arm, seed, kind, weights, self.protocol.sampler, length=length)

    def check(self, arms: Sequence[Arm], seeds: Sequence[int], steps: Mapping[str, int]) -> None:
        """Sample by the other samplers, and with guidance from the baseline and the best other arm."""
        for seed in seeds:
            for arm in [arm for arm in arms if NoiseSchedule(**arm.schedule).variance_preserving]:
                self.evaluate(arm, seed, "averaged", self.weights(arm, seed, steps[arm.name]), SHIPPED)
        best = best_arm([record for record in self.store.records() if record["kind"] == "evaluation"])
        for seed in seeds:
            for arm in [arm for arm in arms if arm.name in (BASELINE, best)]:
                weights = self.weights(arm, seed, steps[arm.name])
                for scale in GUIDANCE_SCALES:
                    self.evaluate(arm, seed, "averaged", weights, FAST, scale)
        for arm in arms:
            self.evaluate(arm, seeds[0], "averaged", self.weights(arm, seeds[0], steps[arm.name]), CHECK)

    def weights(self, arm: Arm, seed: int, steps: int, length: float = 1.0) -> Weights:
        """Return the weights of an arm, ``averaged`` and for the baseline ``raw``, trained if they are not there."""
        until = steps_at(steps, length)
        path = self.store.folder / "weights" / f"{arm.name}.seed{seed}.steps{steps}.at{until}.pt"
        name = f"{named(arm, seed, length)}.training"
        if path.is_file() and self.store.read(name) is not None:
            loaded: Weights = torch.load(path, weights_only=True)
            return loaded
        checkpoint = self.store.folder / "checkpoints" / f"{arm.name}.seed{seed}.steps{steps}.pt"
        material = self.materials.material(arm)
        trained = train(arm, material, seed, steps, until, checkpoint)
        kept = {"averaged": trained.averaged, **({"raw": trained.raw} if arm.name == BASELINE else {})}
        schedule = NoiseSchedule(**arm.schedule)
        errors = {kind: clean_error(self.network(arm, state), schedule, material) for kind, state in kept.items()}
        save_atomically(kept, path)
        self.store.write(name, {"kind": "training", "length": length, **trained.record, "clean_error": errors})
        if until == steps:
            checkpoint.unlink(missing_ok=True)
        say(f"{arm.name} seed {seed}: {until} of {steps} steps, {trained.record['cpu_seconds']:.0f} processor seconds")
        return kept

    def network(self, arm: Arm, state: dict[str, Tensor]) -> Any:
        """Return the network of an arm with these weights."""
        network = make_unet(arm, self.materials.material(arm))
        network.load_state_dict(state)
        return network.eval().requires_grad_(False)

    def evaluate(
        self,
        arm: Arm,
        seed: int,
        kind: str,
        weights: Weights,
        sampler: str,
        scale: float = 1.0,
        length: float = 1.0,
    ) -> None:
        """Sample and measure, unless that is done; draw the first images of each class."""
        name = f"{named(arm, seed, length)}.{kind}.{sampler}.guidance{scale:g}"
        if self.store.read(name) is not None:
            return
        schedule, material = NoiseSchedule(**arm.schedule), self.materials.material(arm)
        network = self.network(arm, weights[kind])
        record, images, labels = self.judge.evaluate(network, schedule, sampler, seed, scale, material)
        rows = [images[labels == label][:SHOWN] for label in range(len(self.judge.class_names))]
        save_picture(grid_of_rows(rows), self.store.folder / "pictures" / f"{name}.png")
        about = {"kind": "evaluation", "arm": arm.name, "seed": seed, "length": length, "weights": kind}
        self.store.write(name, {**about, **record})
        keys = ("fid", "recall", "auc", "agreement")
        say(f"{name}: " + ", ".join(f"{key} {record[key]:.3f}" for key in keys if record.get(key) is not None))


def named(arm: Arm, seed: int, length: float) -> str:
    """Return the beginning of the names of the results of a training at a length."""
    return f"{arm.name}.seed{seed}" + ("" if length == 1.0 else f".at{length:g}")


def steps_of(step_seconds: Mapping[str, float], seconds: float) -> dict[str, int]:
    """Return the steps of each arm that fit in processor seconds."""
    return {name: max(LEAST_STEPS, int(seconds / each)) for name, each in step_seconds.items()}


def steps_at(steps: int, length: float) -> int:
    """Return the step at a share of a training."""
    return max(1, round(steps * length))


def say(text: str) -> None:
    """Print a line with the time."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)
