"""What the sites of a federated training agree on, and what they exchange: tensors by name, and nothing else."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

import medfusion_monai
from medfusion_monai.bundle.parser import read_files
from medfusion_monai.data.reading.transforms import form_of
from medfusion_monai.networks.described import describe
from medfusion_monai.networks.medfusion import Medfusion
from medfusion_monai.runtime.values import check_counts, differences_of, flat_settings
from medfusion_monai.weights.model_info import describe_model, write_model_info
from medfusion_monai.weights.state_dict import save_weights

AUTOENCODER, UNET, AVERAGED = "autoencoder.", "unet.", "averaged."
"""Beginnings of the names of exchanged weights; ``averaged`` is the moving average of the UNet."""
MEAN, SQUARE, ROUNDS = "latent_mean", "latent_square", "rounds"
"""Names of the first two moments of the latents, and of the number of finished rounds."""
State = dict[str, Tensor]


class FederationError(ValueError):
    """A site that does not fit the others, or weights that do not fit the site."""


class Plan(NamedTuple):
    """What the server asks of every site.

    Attributes:
        phase: ``autoencoder`` or ``diffusion``.
        rounds: of training; phase one is followed by one that measures the latents.
        steps: of a round, at every site.
        agreement: see ``agreement_of``.
    """

    phase: Literal["autoencoder", "diffusion"]
    rounds: int
    steps: int
    agreement: Mapping[str, Any]

    def encoded(self) -> str:
        """Return the plan as one word for a command line."""
        return base64.urlsafe_b64encode(json.dumps(self._asdict()).encode()).decode()

    @classmethod
    def decoded(cls, word: str) -> Plan:
        """Return the plan of a word.

        Raises:
            FederationError: if it is not one.
        """
        try:
            plan = cls(**json.loads(base64.urlsafe_b64decode(word)))
            check_counts(rounds=plan.rounds, steps=plan.steps)
        except (ValueError, TypeError) as error:
            raise FederationError(f"the plan of the server cannot be read ({error}): use the same version") from error
        return plan


class Parts(NamedTuple):
    """The parts of a model that a config describes; weights are random."""

    network: Medfusion
    schedule: Any
    inferer: Any
    form: Mapping[str, Any]

    def agreement(self) -> dict[str, Any]:
        """Return what all sites must have in common, as plain data."""
        network = self.network
        return {
            "version": medfusion_monai.__version__,
            "class_names": network.class_names,
            "image_size": network.image_size,
            "resize_mode": self.form.get("resize_mode"),
            "networks": {name: describe(part) for name, part in network.named_children()},
            "schedule": describe(self.schedule),
        }


def open_parts(files: Sequence[str | Path], settings: Mapping[str, Any]) -> Parts:
    """Build the networks of a training config, without reading data.

    Args:
        files: ``train.yaml`` and overlays.
        settings: overrides.

    Raises:
        ValueError: for files and settings that cannot be used.
    """
    parser = read_files([str(path) for path in files], settings)
    names = ("network_def", "schedule", "train#image_inferer", "train#preprocessing")
    network, schedule, inferer, preprocessing = (parser.get_parsed_content(name) for name in names)
    return Parts(network, schedule, inferer, form_of(preprocessing))


def refuse_disagreement(own: Mapping[str, Any], agreed: Mapping[str, Any]) -> None:
    """Raise a FederationError if a site differs from the others, with every setting and both values."""
    plain = json.loads(json.dumps(own))
    changes = differences_of(flat_settings(agreed), flat_settings(plain))
    if changes:
        words = [text.replace(" was ", " is ").replace(", now it is ", " for all sites and here ") for text in changes]
        raise FederationError(f"this site does not fit the federation: {'; '.join(words)}. Correct its settings")


def first_state(phase: str, network: Medfusion) -> State:
    """Return the weights with which a phase begins, and places for all else that sites send.

    Args:
        phase: ``autoencoder`` or ``diffusion``.
        network: its weights; phase two also needs the statistics of the latents.
    """
    state = {ROUNDS: torch.zeros(1), **with_prefix(AUTOENCODER, network.autoencoder)}
    if phase == "diffusion":
        return {**state, **with_prefix(UNET, network.unet), **with_prefix(AVERAGED, network.unet)}
    channels = network.autoencoder.latent_channels
    return {**state, MEAN: torch.zeros(channels), SQUARE: torch.zeros(channels)}


def load_part(module: nn.Module, state: Mapping[str, Tensor], prefix: str) -> None:
    """Load the weights with a prefix into a module.

    Raises:
        FederationError: if names or shapes are others, or values are not finite.
    """
    part = {
        name.removeprefix(prefix): torch.as_tensor(value) for name, value in state.items() if name.startswith(prefix)
    }
    own = module.state_dict()
    odd = sorted(part.keys() ^ own.keys()) or [name for name in own if own[name].shape != part[name].shape]
    if odd:
        raise FederationError(
            f"the weights of the server do not fit this site: {len(odd)} of {len(own)} differ, first {prefix}{odd[0]}. "
            "All sites must use the same networks and classes"
        )
    if not all(bool(value.isfinite().all()) for value in part.values()):
        raise FederationError(
            f"the server sent weights {prefix}* that are not finite: stop the run and look for the cause"
        )
    module.load_state_dict({name: value.to(own[name].dtype) for name, value in part.items()})


def agree_on_latents(state: Mapping[str, Tensor], network: Medfusion) -> None:
    """Load an autoencoder with the statistics of the latents of all sites.

    Args:
        state: the result of phase one, whose moments are averages weighted by images.
        network: its autoencoder is loaded.
    """
    load_part(network.autoencoder, state, AUTOENCODER)
    mean, square = (torch.as_tensor(state[name]).double() for name in (MEAN, SQUARE))
    network.autoencoder.set_latent_statistics(mean.float(), (square - mean.square()).clamp(min=1e-12).sqrt().float())


def write_model(state: Mapping[str, Tensor], parts: Parts, steps: int, place: Path) -> None:
    """Write ``model.pt`` and ``model.json`` of the result of phase two, with the averaged UNet.

    The description names no images: only the sites know theirs.

    Args:
        state: the result.
        parts: of the model.
        steps: of the UNet at each site.
        place: of the weights.
    """
    network = parts.network
    load_part(network.autoencoder, state, AUTOENCODER)
    load_part(network.unet, state, AVERAGED)
    save_weights(network, place)
    info = describe_model(network, parts.schedule, parts.inferer.settings(), parts.form, {"steps": steps})
    write_model_info(place, info)


def with_prefix(prefix: str, module: nn.Module) -> State:
    """Return a copy of the weights of a module, with a prefix to their names, on the CPU."""
    return {prefix + name: value.detach().clone().cpu() for name, value in module.state_dict().items()}
