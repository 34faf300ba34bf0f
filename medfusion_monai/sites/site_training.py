"""One site of a federated training: a bundle that trains for a round at a time, on weights of the server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.bundle import ConfigWorkflow
from torch import Tensor
from torch.utils.data import DataLoader

from medfusion_monai.sites.federation import (
    AUTOENCODER,
    AVERAGED,
    MEAN,
    ROUNDS,
    SQUARE,
    UNET,
    Plan,
    State,
    load_part,
    open_parts,
    refuse_disagreement,
    with_prefix,
)
from medfusion_monai.training.latent_statistics import measure_latent_statistics
from medfusion_monai.weights.state_dict import save_weights

TRAINERS = {"autoencoder": "autoencoder_training#trainer", "diffusion": "train#trainer"}
METRICS = {"autoencoder": "autoencoder_val_loss", "diffusion": "diffusion_val_loss"}


class Contribution(NamedTuple):
    """What a site returns after a round.

    Attributes:
        state: what this round changed, by name. What it did not stays as the server has it: an average of equal numbers
            is rounded, and the autoencoder would drift.
        images: number of training images, the weight of this site in the average.
        metrics: the validation loss; empty where nothing was trained.
    """

    state: State
    images: int
    metrics: dict[str, float]


class SiteTraining:
    """Trains one phase of a bundle, round by round.

    A round begins with the weights that the server sends, wherever this site was before: one that was away, or whose
    program was started again, continues with the others. Only the state of its optimizer is lost.

    Args:
        files: ``train.yaml`` and overlays of this site's bundle.
        settings: overrides of this site, with its folders.
        plan: of the server.

    Raises:
        FederationError: if the site's classes, image size, networks or version are not those of the plan.
        ValueError: as for any training, for data and settings that cannot be used.
    """

    def __init__(self, files: Sequence[str | Path], settings: Mapping[str, Any], plan: Plan) -> None:
        refuse_disagreement(open_parts(files, settings).agreement(), plan.agreement)
        self.plan = plan
        own = {f"{plan.phase}_steps": plan.rounds * plan.steps, f"{plan.phase}_val_interval": plan.steps}
        paths = [str(path) for path in files]
        options = {**settings, **own, "resume": False}
        self.workflow = ConfigWorkflow(paths, workflow_type="train", logging_file=False, **options)
        self.workflow.initialize()
        self.network = self.workflow.parser.get_parsed_content("network_def")
        self.trainer = self.workflow.parser.get_parsed_content(TRAINERS[plan.phase])

    def take_part(self, state: Mapping[str, Tensor]) -> Contribution:
        """Train for a round, or after the last round of phase one measure the latents of this site's images.

        Args:
            state: of the server; see ``first_state``.

        Raises:
            FederationError: if the weights do not fit.
        """
        done = round(float(torch.as_tensor(state[ROUNDS]).reshape(-1)[0]))
        return (
            self._diffusion_round(state, done)
            if self.plan.phase == "diffusion"
            else self._autoencoder_round(state, done)
        )

    def close(self) -> None:
        """Release the folders of the site."""
        self.workflow.finalize()

    def _autoencoder_round(self, state: Mapping[str, Tensor], done: int) -> Contribution:
        load_part(self.network.autoencoder, state, AUTOENCODER)
        if done < self.plan.rounds:
            self._train(done, self.trainer.train_steps)
            result = with_prefix(AUTOENCODER, self.network.autoencoder)
            return self._contribution(result, done, self._metrics())
        self.trainer.to_device()
        images = DataLoader(self.trainer.dataset.images, self.trainer.batch_size)
        mean, std = measure_latent_statistics(self.network.autoencoder, images, self.trainer.training_run.device)
        return self._contribution({MEAN: mean.cpu(), SQUARE: (std.square() + mean.square()).cpu()}, done, {})

    def _diffusion_round(self, state: Mapping[str, Tensor], done: int) -> Contribution:
        if not self.trainer._is_open:
            load_part(self.network.autoencoder, state, AUTOENCODER)
            save_weights(self.network.autoencoder, self.trainer.training_run.autoencoder_file)
        self.trainer.open()
        load_part(self.network.unet, state, UNET)
        load_part(self.trainer.ema.module, state, AVERAGED)
        self.trainer.ema.num_updates = done * self.plan.steps
        self._train(done, self.trainer.run)
        result = {**with_prefix(UNET, self.network.unet), **with_prefix(AVERAGED, self.trainer.ema.module)}
        return self._contribution(result, done, self._metrics())

    def _train(self, done: int, run: Any) -> None:
        self.trainer.begin_at(done * self.plan.steps)
        self.trainer.state.max_epochs = done + 1
        run()

    def _metrics(self) -> dict[str, float]:
        name = METRICS[self.plan.phase]
        return {name: float(self.trainer.evaluator.state.metrics[name])}

    def _contribution(self, result: State, done: int, metrics: dict[str, float]) -> Contribution:
        result[ROUNDS] = torch.tensor([done + 1.0])
        return Contribution(result, len(self.trainer.dataset.images), metrics)
