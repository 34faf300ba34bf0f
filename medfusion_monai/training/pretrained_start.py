"""Weights that a training starts from, and which of them it keeps as they are."""

from __future__ import annotations

import logging
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medfusion_monai.diffusion.guidance import Guide
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.networks.autoencoder import LatentAutoencoder, decoder_names
from medfusion_monai.networks.described import DescriptionError, describe, refuse_other_arguments
from medfusion_monai.networks.medfusion import Medfusion
from medfusion_monai.runtime.errors import WeightsError
from medfusion_monai.runtime.files import file_sha256
from medfusion_monai.runtime.values import differences_of, flat_settings
from medfusion_monai.weights.guidance_model import guide_beside, load_guide
from medfusion_monai.weights.model_info import earlier_trainings, require_denoiser, require_model_info
from medfusion_monai.weights.places import missing_weights, weights_at
from medfusion_monai.weights.state_dict import check_listed, fill_weights, read_state

logger = logging.getLogger(__name__)

ENCODER, AUTOENCODER = "encoder", "autoencoder"
LABELS = ".class_embedding."


class PretrainedStart:
    """Weights that a training starts from, in place of random ones.

    Args:
        path: a weights file, a folder with weights, or a bundle; None for random weights.
        frozen: what keeps these weights and the statistics of their latents: ``encoder`` (phase one trains the decoder
            alone, and a UNet that was trained on these latents still fits), ``autoencoder`` (phase one takes no step),
            or None for nothing.

    Raises:
        ValueError: for another value of ``frozen``, or one without ``path``.
    """

    def __init__(self, path: str | Path | None = None, frozen: str | None = None) -> None:
        if frozen not in (None, ENCODER, AUTOENCODER):
            raise ValueError(f"frozen must be null, {ENCODER} or {AUTOENCODER}, received {frozen!r}")
        if frozen is not None and path is None:
            raise ValueError(f"frozen is {frozen}, but random weights must be trained: set pretrained_model")
        self.given = None if path is None else Path(path)
        self.path, self.frozen = None if path is None else weights_at(path), frozen

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What a run must share with the checkpoint it resumes from."""
        if self.path is None:
            return {}
        return {"pretrained_model": file_sha256(self._file()), "frozen": self.frozen}

    @cached_property
    def origin(self) -> dict[str, Any]:
        """What the description of the trained weights says of these: their checksum and what they were trained on."""
        if self.path is None:
            return {}
        started_from = {**(require_model_info(self.path).get("training") or {}), **self.settings}
        started_from["weights_sha256"] = started_from.pop("pretrained_model")
        return earlier_trainings({"started_from": started_from})

    @property
    def guidance_scale(self) -> float:
        """The guidance scale that they are sampled with by default.

        Raises:
            ValueError: if it counts only between noise levels, or away from a class: tuning for few steps learns
                guidance at all levels, away from no label or from a guide.
        """
        sampler = require_model_info(self._file())["sampler"]
        names = ("guidance_interval", "negative_label")
        found = [f"{name} {sampler[name]}" for name in names if sampler.get(name) is not None]
        if found:
            raise ValueError(
                f"pretrained_model {self.path} is guided with {', '.join(found)}, "
                "which few steps do not learn: set guidance_scale to learn guidance without it, 1 for none"
            )
        return float(sampler.get("guidance_scale", 1.0))

    def load_guide(self, autoencoder: LatentAutoencoder) -> Guide | None:
        """Load the UNet that guides them by default; None if they name none.

        Args:
            autoencoder: as ``fill`` filled it.

        Raises:
            WeightsError: if it is missing, damaged, or does not fit them.
        """
        file = self._file()
        info = require_model_info(file)
        path = guide_beside(file, info)
        return None if path is None else load_guide(path, file, info, autoencoder.state_dict())

    def fill(self, network: Medfusion, schedule: NoiseSchedule) -> None:
        """Load the weights into the networks of a training.

        If the classes have other names, the embeddings of labels stay random, which the log says.

        Args:
            network: to be trained.
            schedule: of its noise.

        Raises:
            WeightsError: if the weights are missing or damaged, have no description, or belong to networks with other
                arguments or to another noise schedule.
        """
        if self.path is None:
            return
        file = self._file()
        check_listed(file)
        info, state = require_model_info(file), read_state(file)
        require_denoiser(file, info)
        same_classes = info["class_names"] == network.class_names
        self._compare(network, schedule, info, same_classes)
        if not same_classes:
            state |= {name: value for name, value in network.state_dict().items() if LABELS in name}
            logger.info(
                "%s was trained for the classes %s: the embeddings of %s start from random values",
                file,
                ", ".join(info["class_names"]),
                ", ".join(network.class_names),
            )
        fill_weights(network, state, file)
        _ = self.origin  # read now: the file may be gone when the training ends
        logger.info("the training starts from %s", file)

    def refuse_own_output(self, model_dir: Path) -> None:
        """Raise a ValueError if the training writes these weights, or others that would be found in their place."""
        if self.given is None or self.path is None:
            return
        folder, given = model_dir.resolve(), self.given.resolve()
        if folder in (self.path.resolve().parent, given, given / "models"):
            raise ValueError(
                f"pretrained_model {self.given} is {self.path}, but the training writes model.pt to {model_dir}, and "
                "the same command would then begin from that: name a folder beside it, as models/starter, copy the "
                "weights to one, or set another model_dir"
            )

    def refuse_other_latents(self, autoencoder: LatentAutoencoder, file: Path) -> None:
        """Raise a WeightsError if ``autoencoder.pt`` differs from these weights in what is frozen.

        Args:
            autoencoder: as this start filled it.
            file: what phase two is about to load into it.
        """
        if self.frozen is None or not file.is_file():
            return
        state = read_state(file)
        kept = autoencoder.state_dict()
        if self.frozen == ENCODER:
            kept = {name: value for name, value in kept.items() if name not in decoder_names(autoencoder)}
        other = [name for name, value in kept.items() if name in state and not torch.equal(value.cpu(), state[name])]
        if other:
            raise WeightsError(
                f"{file} has another {self.frozen} than {self.path}, which frozen should keep ({len(other)} values "
                f"differ, e.g. {other[0]}): set another model_dir, or leave frozen out"
            )

    def trained(self, autoencoder: LatentAutoencoder) -> list[nn.Parameter]:
        """Return the parameters of an autoencoder that phase one trains, and freeze the others."""
        if self.frozen == ENCODER:
            for part in autoencoder.encoder_parts:
                part.requires_grad_(False)
        return [parameter for parameter in autoencoder.parameters() if parameter.requires_grad]

    def _file(self) -> Path:
        if self.path is None or not self.path.is_file():
            raise WeightsError(f"pretrained_model: {missing_weights(Path(self.path or ''))}")
        return self.path

    def _compare(self, network: Medfusion, schedule: NoiseSchedule, info: dict[str, Any], same_classes: bool) -> None:
        problems = differences_of(
            flat_settings({"schedule": info["schedule"]}), flat_settings({"schedule": describe(schedule)})
        )
        for name, part in network.named_children():
            description = dict(info["networks"][name])
            if not same_classes and "num_classes" in description:
                description["num_classes"] = len(network.class_names)
            try:
                refuse_other_arguments(part, description, name)
            except DescriptionError as error:
                problems.append(str(error))
        if problems:
            raise WeightsError(
                f"pretrained_model {self.path} does not fit this training: {'; '.join(problems)}. Use the keys that it "
                "was trained with (model.json beside it), or other weights"
            )
