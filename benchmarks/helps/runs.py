"""The trainings of a study, one file of results each."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from study.store import Store
from torch import Tensor, nn

from helps.classifier import Head, WholeNetwork, area, areas, scores, train
from helps.draws import Part, Pool, counts_of, draw_part, draw_samples, needed, resample_patients
from helps.protocol import FEWEST, HEAD, JUDGE_LEAST, MIXED, PRETRAINED, REAL, SYNTHETIC, Arm, Protocol
from helps.summary import shown
from medfusion_monai.evaluation.metrics.intervals import Figure, figure_within
from medfusion_monai.weights.state_dict import save_atomically

TOO_FEW, NEAR_CHANCE, FILTERED_AWAY = "too few samples", "judge near chance", "too few samples pass the filter"


class Refused(ValueError):
    """An arm that is not run.

    Args:
        reason: in tables.
        text: what was found, and what to do.
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class Study:
    """What is left to do of a study.

    Args:
        store: where results are.
        pools: the images, by what is trained: features for a ``head``, image files for the ``whole`` network.
        protocol: what was chosen before.
        more_samples: writes what to do about too few samples, from the number of both classes that is needed.
        device: where networks are trained.
    """

    def __init__(
        self,
        store: Store,
        pools: Mapping[str, Pool],
        protocol: Protocol,
        more_samples: Any = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.store, self.pools, self.protocol, self.device = store, pools, protocol, device
        self.more_samples = more_samples or (lambda counts: f"Sample {counts} of both classes.")

    def run(self, whole: Sequence[Arm] = ()) -> None:
        """Train and measure every arm of every split, then those of the whole network."""
        largest = max(self.protocol.fractions)
        for seed, fraction in self.protocol.parts():
            for arm in self.protocol.arms:
                self.measure(arm, seed, fraction)
        for seed in self.protocol.seeds:
            for arm in whole:
                self.measure(arm, seed, largest)

    def measure(self, arm: Arm, seed: int, fraction: float) -> dict[str, Any]:
        """Return the record of an arm; train it unless that is done.

        It has the ``scores`` of the test images, or the reason for which the arm was ``refused``.
        """
        name = f"{arm.name}.share{fraction:g}.seed{seed}"
        known = self.store.read(name)
        if known is not None:
            return known
        start = time.monotonic()
        try:
            outcome = self.train_arm(arm, seed, fraction)
        except Refused as refusal:
            outcome = {"refused": refusal.reason, "text": str(refusal)}
        record = {"arm": arm.name, "fraction": fraction, "seed": seed, **outcome}
        record["seconds"] = round(time.monotonic() - start, 1)
        self.store.write(name, record)
        self.say(f"{name}: " + (f"AUC {outcome['auc']:.3f}" if "auc" in outcome else f"refused, {outcome['refused']}"))
        return record

    def train_arm(self, arm: Arm, seed: int, fraction: float) -> dict[str, Any]:
        """Train an arm and score the test images.

        Raises:
            Refused: for too few samples, or a judge near chance.
        """
        pool = self.pools[arm.network]
        part = draw_part(pool, seed, fraction)
        samples = self.samples(arm, seed, fraction, part)
        stages = {
            REAL: [part.real],
            SYNTHETIC: [samples],
            MIXED: [torch.cat([part.real, samples])],
            PRETRAINED: [samples, part.real],
        }[arm.kind]
        network = self.network(arm, stages[0], seed)
        recipe = self.protocol.head if arm.network == HEAD else self.protocol.whole
        trained = [train(network, pool, stage, part.tuning, recipe, seed, self.device) for stage in stages]
        values = scores(network, pool, pool.test, self.device)
        record = {
            "stages": trained,
            "auc": area(values, pool.labels[pool.test]),
            "scores": [round(value, 6) for value in values.tolist()],
        }
        if arm == Arm(REAL):
            save_atomically(network.cpu().state_dict(), self.judge_file(seed, fraction))
            record["judge"] = self.judge_figure(network, part).as_dict()
        return record

    def network(self, arm: Arm, first: Tensor, seed: int) -> nn.Module:
        """Return the network of an arm; those of a split start from the same weights."""
        return Head(self.pools[HEAD].inputs[first], seed) if arm.network == HEAD else WholeNetwork(seed)

    def samples(self, arm: Arm, seed: int, fraction: float, part: Part) -> Tensor:
        """Return the positions of the samples of an arm.

        Raises:
            Refused: for too few samples, or a judge near chance.
        """
        pool = self.pools[HEAD]
        counts, found = needed(pool, arm, part), counts_of(pool.labels[pool.samples])
        if any(there < count for there, count in zip(found, counts, strict=True)):
            text = f"{counts[0]} negative and {counts[1]} positive samples are needed, {found[0]} and {found[1]} found."
            raise Refused(TOO_FEW, f"{text} {self.more_samples(counts)}")
        chosen = draw_samples(pool, counts, seed)
        return self.filtered(chosen, seed, fraction) if arm.filtered else chosen

    def filtered(self, samples: Tensor, seed: int, fraction: float) -> Tensor:
        """Return the samples whose label the judge agrees with.

        Raises:
            Refused: for a judge near chance, or if hardly any sample passes.
        """
        pool = self.pools[HEAD]
        figure = Figure(**self.measure(Arm(REAL), seed, fraction)["judge"])
        if figure.value is None or figure.low is None or figure.low <= 0.5 or figure.value < JUDGE_LEAST:
            raise Refused(
                NEAR_CHANCE,
                f"the judge of split {seed} at {fraction:.0%} has an AUC of {shown(figure.as_dict())} on the tuning "
                f"patients; {JUDGE_LEAST:g} and an interval above 0.5 are needed. Use more real images, or read "
                "the arms without a filter.",
            )
        judge = Head(pool.inputs[samples], seed)
        judge.load_state_dict(torch.load(self.judge_file(seed, fraction), weights_only=True))
        agreed = (scores(judge, pool, samples) > 0) == (pool.labels[samples] == 1)
        kept = samples[agreed]
        counts = counts_of(pool.labels[kept])
        if min(counts) < FEWEST:
            text = (
                f"the judge of split {seed} at {fraction:.0%} agrees with {counts[0]} negative and {counts[1]} positive"
            )
            raise Refused(FILTERED_AWAY, f"{text} samples of {len(samples)}; {FEWEST} of each are needed.")
        return kept

    def judge_figure(self, network: nn.Module, part: Part) -> Figure:
        """Return the AUC of a judge on the tuning patients, with its interval over patients."""
        pool = self.pools[HEAD]
        labels, patients = pool.labels[part.tuning], pool.patients[part.tuning]
        values = scores(network, pool, part.tuning)
        weights = resample_patients(labels, patients, self.protocol.replicates)
        return figure_within(area(values, labels), areas(values, labels, weights), 0.0, 1.0)

    def judge_file(self, seed: int, fraction: float) -> Any:
        """Return the path of the weights of a judge."""
        return self.store.folder / "judges" / f"share{fraction:g}.seed{seed}.pt"

    def say(self, text: str) -> None:
        """Print a line with the time."""
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)
