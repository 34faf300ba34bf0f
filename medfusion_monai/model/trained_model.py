"""A trained model, for Python and for the bundles' configs, built from the description of its weights."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medfusion_monai.baselines.gan import Gan
from medfusion_monai.diffusion.guidance import Guide
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.model.own_sampler import make_sampler
from medfusion_monai.model.sample_files import save_dicom
from medfusion_monai.model.stored_model import untrained_info
from medfusion_monai.networks.described import DescriptionError, build, refuse_other_arguments
from medfusion_monai.networks.medfusion import Medfusion
from medfusion_monai.networks.small_decoder import SmallDecoder
from medfusion_monai.runtime.errors import WeightsError
from medfusion_monai.runtime.files import file_sha256
from medfusion_monai.runtime.seeds import derive_seed
from medfusion_monai.runtime.values import check_counts, check_image_size
from medfusion_monai.sampling.plan import parse_labels
from medfusion_monai.weights.decoder_file import decoder_beside, load_small_decoder
from medfusion_monai.weights.guidance_model import guide_beside, load_guide
from medfusion_monai.weights.model_info import (
    PLACES,
    earlier_trainings,
    found_at,
    has_latents,
    model_info_path,
    read_model_info,
    refuse_contradictions,
    require_latents,
    require_model_info,
)
from medfusion_monai.weights.places import find_weights, missing_weights, unpack_weights
from medfusion_monai.weights.state_dict import load_weights, read_state


def load(path: str | Path, device: torch.device | str | None = None, network: Medfusion | Gan | None = None) -> Model:
    """Load a trained model; nothing in its files is executed.

    Args:
        path: a weights file (``.pt`` or ``.safetensors``), a folder with weights, a bundle's folder, or its zip.
        device: of the model; None for the first GPU, or else the CPU.
        network: to fill instead of the one that the weights describe.

    Raises:
        ValueError: if there are no weights, they have no description, or they do not fit it.

    Example:
        >>> import medfusion_monai as mf  # doctest: +SKIP
        >>> model = mf.load("models/model.pt")  # doctest: +SKIP
        >>> images = model.sample("cardiomegaly", n=4, seed=0)  # doctest: +SKIP
    """
    if Path(path).suffix == ".zip" and zipfile.is_zipfile(path):
        with tempfile.TemporaryDirectory() as folder:
            model = _loaded(unpack_weights(Path(path), Path(folder)), device, network)
            _ = model.weights_sha256, model.own_guide  # the unpacked files are gone afterwards
            return model
    return _loaded(find_weights(path), device, network)


NEEDED = {"class_names", "image_size", "image_channels", "prediction_type"}
"""What a config has to give, besides ``network_def``, for weights without a description."""
SMALL_DECODER = "small"
"""Name of the small decoder beside the weights."""


class Model:
    """A class-conditional latent diffusion model or GAN, built from the description of its weights.

    Only a diffusion model (``has_latents``) has latents to encode and decode, and a noise schedule. Input and output
    images are float32 (B, C, H, W) in [0, 1]; latents (B, L, h, w) have unit variance.

    Args:
        path: the weights file; it need not exist before ``load_weights``.
        given: values set by the caller, by the names of ``medfusion_monai.weights.model_info.PLACES`` (None if unset):
            they must agree with the weights, except ``image_size``.
        without_weights: ``image_channels`` and ``class_names`` of the untrained, published network that replaces a
            missing file; None for an error.
        network: to use instead of the one that the weights describe.
        info: description of ``network``, which is filled, in place of that of the weights; they need not exist then.

    Raises:
        WeightsError: if the weights have no description, or a given value contradicts it.
    """

    def __init__(
        self,
        path: str | Path,
        given: Mapping[str, Any] | None = None,
        without_weights: Mapping[str, Any] | None = None,
        network: Medfusion | Gan | None = None,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        self.path, self.given = Path(path), {name: value for name, value in (given or {}).items() if value is not None}
        unknown = self.given.keys() - PLACES.keys()
        if unknown:
            raise ValueError(f"given has unknown names {sorted(unknown)}: use those of {', '.join(PLACES)}")
        self.is_filled = info is not None
        self.info = self._read(without_weights) if info is None else dict(info)
        size = self.given.get("image_size", [8, 8])
        if not isinstance(size, list | tuple) or len(size) != 2:
            check_image_size(size)
        if self.path.is_file():
            refuse_contradictions(self.path, self.info, self.given)
        if network is not None:
            self.network = network

    def _read(self, without_weights: Mapping[str, Any] | None) -> dict[str, Any]:
        if self.path.is_file():
            if self.given.keys() >= NEEDED and read_model_info(self.path) is None:
                return {}  # the config defines everything itself
            return require_model_info(self.path)
        if without_weights is None:
            raise WeightsError(missing_weights(self.path))
        if read_model_info(self.path) is not None:  # of weights that are not downloaded yet
            return require_model_info(self.path)
        return untrained_info(**without_weights)

    def _known(self, name: str) -> Any:
        return self.given.get(name, found_at(self.info, name))

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in label order."""
        return list(self._known("class_names"))

    @property
    def image_size(self) -> list[int]:
        """Height and width of the images that are sampled."""
        return self._known("image_size")

    @property
    def image_channels(self) -> int:
        """1 (gray) or 3 (RGB)."""
        known = self._known("image_channels")
        return self.network.image_channels if known is None else known

    @property
    def has_latents(self) -> bool:
        """Whether the weights are those of a diffusion model, not of a GAN."""
        return has_latents(self.info)

    @cached_property
    def network(self) -> Any:
        """All networks, a ``Medfusion`` or a ``Gan``; random until ``load_weights``.

        Raises:
            WeightsError: if the description names an unknown network.
        """
        try:
            parts = {name: build(part) for name, part in self.info.get("networks", {}).items()}
            if not self.has_latents:
                return Gan(parts["generator"], self.class_names, self.image_size)
            return Medfusion(parts["autoencoder"], parts["unet"], self.class_names, self.image_size)
        except (DescriptionError, KeyError) as error:
            raise WeightsError(f"{model_info_path(self.path)} does not describe a network: {error}") from error

    @cached_property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule that the UNet was trained with.

        Raises:
            WeightsError: for a GAN.
        """
        require_latents(self.path, self.info)
        if "schedule" in self.info:
            return build(self.info["schedule"])
        return NoiseSchedule(
            schedule=self.given.get("noise_schedule", "scaled_linear"),
            zero_terminal_snr=self.given.get("zero_terminal_snr", False),
            prediction_type=self.given["prediction_type"],
        )

    @cached_property
    def sampler(self) -> Any:
        """The model's default sampler."""
        return make_sampler(self)

    @property
    def class_shares(self) -> list[float] | None:
        """Shares of the classes among the training images, in label order; None if unknown."""
        return self.info.get("class_shares")

    @property
    def trained_on(self) -> str | None:
        """The ``fingerprint`` of the training images; None if unknown."""
        return self.info.get("training", {}).get("images")

    @property
    def earlier_trained_on(self) -> list[str | None]:
        """The ``fingerprint`` of the images of each other training behind these weights; None where it is unknown."""
        return _fingerprints(earlier_trainings(self.info.get("training")))

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights file."""
        return file_sha256(self.path)

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return next(self.network.parameters()).device

    def to(self, device: torch.device | str) -> Model:
        """Move the model and return it."""
        self.network.to(device)
        return self

    def load_weights(self, network: Any = None) -> Any:
        """Fill the network, or another one, with the weights, and return it ready for evaluation.

        Raises:
            WeightsError: if the weights are missing, damaged, or do not fit, or if the network was built with other
                arguments than the one they were trained with: some change no weight's shape.
        """
        if not self.path.is_file():
            raise WeightsError(missing_weights(self.path))
        filled = self.network if network is None else network
        parts = dict(filled.named_children())
        try:
            for name, description in self.info.get("networks", {}).items():
                if name not in parts:
                    raise DescriptionError(
                        f"it has {', '.join(parts)}, the weights have {', '.join(self.info['networks'])}"
                    )
                refuse_other_arguments(parts[name], description, name)
        except DescriptionError as error:
            raise WeightsError(
                f"weights {self.path} do not fit this network: {error}. Leave out network_def: the weights describe it"
            ) from error
        load_weights(filled, self.path)
        self.is_filled = self.is_filled or filled is self.__dict__.get("network")
        return filled.eval()

    def load_guide(self, path: str | Path) -> Guide:
        """Load the UNet of other weights to guide this model, see ``autoguided_denoiser``.

        Raises:
            WeightsError: if the weights are missing, damaged, or do not fit this model.
        """
        if not isinstance(path, str | Path):
            raise ValueError(f"guidance_model must be the path of weights, received {path!r}")
        return load_guide(path, self.path, self.info, self._autoencoder_state())

    @cached_property
    def own_guide(self) -> Guide | None:
        """The worse version of the UNet that guides it by default; None if the weights name none.

        Raises:
            WeightsError: as ``load_guide``.
        """
        path = guide_beside(self.path, self.info)
        return None if path is None else self.load_guide(path)

    def load_decoder(self, choice: str | Path) -> SmallDecoder:
        """Load a small decoder of this model's latents.

        Args:
            choice: its file, or ``small`` for the one beside the weights.

        Raises:
            WeightsError: if the file is missing or damaged, is not a small decoder, or decodes other latents.
        """
        if not isinstance(choice, str | Path):
            raise ValueError(f"decoder must be full, small or the path of a file, received {choice!r}")
        state = self._autoencoder_state()
        path = decoder_beside(self.path) if choice == SMALL_DECODER else choice
        return load_small_decoder(path, self.network.autoencoder, state)

    def _autoencoder_state(self) -> dict[str, Tensor]:
        """Return the weights of the autoencoder, on the CPU."""
        if not self.path.is_file() and not self.is_filled:  # those of a zip are gone once they are loaded
            raise WeightsError(missing_weights(self.path))
        state = self.network.state_dict() if self.is_filled else read_state(self.path)
        prefix = "autoencoder."
        return {name.removeprefix(prefix): value.cpu() for name, value in state.items() if name.startswith(prefix)}

    @torch.no_grad()
    def sample(
        self, label: int | str | Sequence[int | str], n: int = 1, seed: int = 0, batch_size: int = 16, **choices: Any
    ) -> Tensor:
        """Sample images, the same as ``run inference --precision float32`` writes for this label and seed.

        Args:
            label: number or name of a class, or a list of them.
            n: images per label.
            seed: of the set; image k of a label is the same however many others are requested.
            batch_size: images at a time.
            choices: other settings of ``LatentDiffusionSampler``, e.g. ``num_inference_steps=50``, or
                ``dtype=torch.bfloat16`` if the device supports it; ``decoder="small"`` decodes by the small decoder
                beside the weights; for a GAN only ``dtype``.

        Returns:
            float32 (len(label) * n, C, H, W) in [0, 1], on the CPU.

        Raises:
            ValueError: for an unknown class (the message lists the known ones), or a setting out of range.
        """
        inferer = make_sampler(self, **choices) if choices else self.sampler
        labels, seeds = self._plan(label, n, seed)
        parts = [slice(start, start + batch_size) for start in range(0, len(seeds), batch_size)]
        return torch.cat([inferer(labels[at].to(self.device), self.network, seeds=seeds[at]).cpu() for at in parts])

    def save_dicom(
        self, images: Tensor, folder: str | Path, label: int | str | Sequence[int | str], seed: int = 0, **choices: Any
    ) -> list[Path]:
        """Write images of ``sample``, with the same label, seed and choices, as DICOM files, see ``save_dicom``."""
        return save_dicom(self, images, folder, label, seed, **choices)

    @torch.no_grad()
    def sample_latents(
        self, label: int | str | Sequence[int | str], n: int = 1, seed: int = 0, **choices: Any
    ) -> Tensor:
        """Sample latents of unit variance (len(label) * n, L, h, w); ``decode`` yields ``sample``'s images."""
        require_latents(self.path, self.info)
        inferer = make_sampler(self, **choices) if choices else self.sampler
        labels, seeds = self._plan(label, n, seed)
        return inferer.sample_latents(labels.to(self.device), self.network, seeds)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Return the most likely latents (B, L, h, w), of unit variance, of images (B, C, H, W) in [0, 1]."""
        autoencoder = self.network.autoencoder
        return autoencoder.normalize(autoencoder.encode(self._to_network(images)).mode())

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Return the images (B, C, H, W) in [0, 1] of unit-variance latents (B, L, h, w)."""
        images = self.network.autoencoder.decode_stage_2_outputs(latents.to(self.device))
        return (images.float() * 0.5 + 0.5).clamp(0.0, 1.0)

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Encode and decode images (B, C, H, W) in [0, 1]."""
        return self.decode(self.encode(images))

    def _to_network(self, images: Tensor) -> Tensor:
        if images.ndim != 4:
            raise ValueError(f"images must be (B, C, H, W) in [0, 1], received shape {tuple(images.shape)}")
        if images.numel() and not (images.min() >= 0.0 and images.max() <= 1.0):
            raise ValueError(f"images must be in [0, 1], received {float(images.min()):g} to {float(images.max()):g}")
        return images.to(self.device, torch.float32) * 2.0 - 1.0

    def _plan(self, label: int | str | Sequence[int | str], n: int, seed: int) -> tuple[Tensor, list[int]]:
        check_counts(n=n)
        check_counts(0, seed=seed)
        chosen = parse_labels(label, self.class_names)
        pairs = [(number, derive_seed("image", seed, number, index)) for number in chosen for index in range(n)]
        return torch.tensor([number for number, _ in pairs]), [own for _, own in pairs]


def _fingerprints(trainings: Mapping[str, Any]) -> list[str | None]:
    found = [[part.get("images"), *_fingerprints(earlier_trainings(part))] for part in trainings.values()]
    return [fingerprint for part in found for fingerprint in part]


def _loaded(path: Path, device: torch.device | str | None, network: Medfusion | Gan | None) -> Model:
    model = Model(path, network=network)
    model.load_weights()
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
