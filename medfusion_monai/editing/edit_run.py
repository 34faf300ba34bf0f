"""Edits for the bundles' ``edit.yaml``: batches of images in, edited images or figures out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from monai.inferers.inferer import Inferer
from torch import Tensor

import medfusion_monai
from medfusion_monai.editing.anomaly import ANOMALY_STRENGTH, SMOOTHING, anomaly_map
from medfusion_monai.editing.counterfactuals import GUIDANCE_SCALE, STRENGTH, counterfactual
from medfusion_monai.editing.diffusion_classifier import Classification, classify, own_labels
from medfusion_monai.editing.edit_inputs import image_seeds, noise_levels
from medfusion_monai.editing.inpainting import REPEATS, inpaint
from medfusion_monai.editing.interpolation import interpolate
from medfusion_monai.editing.variation import vary
from medfusion_monai.model import Model, make_sampler
from medfusion_monai.networks.described import description_digest
from medfusion_monai.networks.medfusion import Medfusion
from medfusion_monai.networks.unet import NO_LABEL
from medfusion_monai.runtime.dtype import precision_name
from medfusion_monai.runtime.values import check_counts, check_numbers
from medfusion_monai.weights.model_info import require_denoiser, require_latents

Batch = Mapping[str, Any]


class Kind(NamedTuple):
    """An edit that a run can make.

    Args:
        make: returns images (B, C, H, W), or figures (B, K), from an ``Edit`` and a batch.
        settings: that it uses, with their values if they are not given.
        needs_label: whether ``label`` must be given; None if it must not.
        writes_images: whether it gives images.
    """

    make: Callable[[Edit, Batch], Tensor]
    settings: Mapping[str, Any] = {}
    needs_label: bool | None = None
    writes_images: bool = True


class Edit(Inferer):
    """Edits batches of ``EditImages``.

    Args:
        edit: a name in ``EDITS``.
        model: whose network is used.
        network: in place of the model's own, e.g. one that a config defines.
        label: class that the edit shows, by number or name.
        number: images for each, or frames.
        strength: share of the noise levels that are used.
        guidance_scale: of the edit.
        smoothing: of ``anomaly_map``, in pixels.
        repeats: of ``inpaint``.
        threshold: of the score of ``anomaly_map``, above which an image is flagged.
        temperature: of ``calibrate``, for probabilities.
        num_levels: noise levels at which images are classified.
        num_inference_steps: of the sampler; None for the model's.
        spacing: likewise.
        dtype: of the networks' arithmetic.

    Raises:
        ValueError: for an unknown edit, a setting that it does not use or that is out of range, or a label that is
            missing or has no effect.
    """

    def __init__(
        self,
        edit: str,
        model: Model,
        network: Medfusion | None = None,
        label: Any = None,
        number: int | None = None,
        strength: float | None = None,
        guidance_scale: float | None = None,
        smoothing: float | None = None,
        repeats: int | None = None,
        threshold: float | None = None,
        temperature: float | None = None,
        num_levels: int | None = None,
        num_inference_steps: int | None = None,
        spacing: Any = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        if edit not in EDITS:
            raise ValueError(f"edit must be one of {', '.join(EDITS)}, received {edit!r}")
        (require_latents if edit == "reconstruct" else require_denoiser)(model.path, model.info)
        self.edit, self.model, self.dtype = edit, model, dtype
        self.kind: Kind = EDITS[edit]
        if network is not None:
            model.network = network
        given = {
            "number": number,
            "strength": strength,
            "guidance_scale": guidance_scale,
            "smoothing": smoothing,
            "repeats": repeats,
            "threshold": threshold,
            "temperature": temperature,
            "num_levels": num_levels,
            "num_inference_steps": num_inference_steps,
            "spacing": spacing,
        }
        self.chosen = _chosen(edit, given)
        _check_label(edit, label)
        names = ("num_inference_steps", "spacing")
        self.steps = {name: self.chosen[name] for name in names if self.chosen.get(name) is not None}
        sampler = make_sampler(model, **self.steps)
        if "strength" in self.chosen:
            noise_levels(sampler.timesteps, self.chosen["strength"])
        self.sampler = sampler
        self._frames: Tensor | None = None

    @property
    def number(self) -> int:
        """Images that are written for each."""
        return self.chosen.get("number", 1)

    @property
    def channels(self) -> int:
        """Of the images that are written."""
        return 1 if self.edit == "anomaly_map" else self.model.image_channels

    @property
    def extra_columns(self) -> list[str]:
        """Columns of the manifest with figures of an image."""
        if self.edit == "classify":
            return ["found_class", *(f"probability_{name}" for name in self.model.class_names)]
        return ["score", "flag"] if self.edit == "anomaly_map" else []

    def figures(self, output: Tensor) -> dict[str, Any]:
        """Return the values of ``extra_columns`` for the output of one image."""
        if self.edit == "anomaly_map":
            score, threshold = float(output.max()), self.chosen["threshold"]
            flag = "" if threshold is None else "yes" if score > threshold else "no"
            return {"score": round(score, 6), "flag": flag}
        if self.edit != "classify":
            return {}
        found = self.model.class_names[int(output.argmax())]
        return dict(zip(self.extra_columns, [found, *(round(float(value), 6) for value in output)], strict=True))

    def settings(self, batch_size: int, output_format: str) -> dict[str, Any]:
        """Return the settings of every image of a run, besides its label, seed and weights."""
        network = self.model.network
        steps = {name: getattr(self.sampler, name) for name in ("num_inference_steps", "spacing")}
        if "num_inference_steps" not in self.kind.settings:
            steps = {}
        return {
            "edit": self.edit,
            **self.chosen,
            **steps,
            "networks": description_digest(network.autoencoder, network.unet, self.model.schedule),
            "precision": precision_name(self.dtype),
            "batch_size": batch_size,
            "image_size": "x".join(str(side) for side in self.model.image_size),
            "output_format": output_format,
            "version": medfusion_monai.__version__,
        }

    @torch.no_grad()
    def __call__(self, inputs: Tensor, network: Any, batch: Batch, *args: Any, **kwargs: Any) -> Tensor:
        """Edit images (B, C, H, W) in [0, 1].

        Args:
            inputs: the images.
            network: ignored, for the interface of MONAI's inferers: the edit has its own.
            batch: collated items of ``EditImages``.
            args: ignored likewise.
            kwargs: ignored likewise.

        Returns:
            images (B, C, H, W) in [0, 1], or figures (B, K), on the CPU.
        """
        return self.kind.make(self, {**batch, "image": inputs})

    def own(self, batch: Batch) -> Tensor:
        """Return the classes (B,) that the images have: as given, or as ``classify`` finds."""
        return _filled(self.model, batch["image"], torch.as_tensor(batch["own_label"]))


def _reconstruct(edit: Edit, batch: Batch) -> Tensor:
    return edit.model.reconstruct(batch["image"]).cpu()


def _counterfactual(edit: Edit, batch: Batch) -> Tensor:
    images, chosen = batch["image"], edit.chosen
    return counterfactual(
        edit.model,
        images,
        torch.as_tensor(batch["label"]),
        edit.own(batch),
        chosen["strength"],
        chosen["guidance_scale"],
        batch_size=len(images),
        dtype=edit.dtype,
        **edit.steps,
    )


def _variations(edit: Edit, batch: Batch) -> Tensor:
    images, labels = batch["image"], torch.as_tensor(batch["label"])
    labels = _filled(edit.model, images, torch.where(labels < 0, torch.as_tensor(batch["own_label"]), labels))
    seeds = [
        image_seeds("variation", image[None], int(seed), int(index) + 1)[-1]
        for image, seed, index in zip(images, batch["seed"], batch["index"], strict=True)
    ]
    guidance = {"guidance_scale": edit.chosen["guidance_scale"], "dtype": edit.dtype}
    sampler = make_sampler(edit.model, **edit.steps, **guidance)
    return vary(edit.model, edit.model.encode(images), labels, seeds, sampler, edit.chosen["strength"]).cpu()


def _inpaint(edit: Edit, batch: Batch) -> Tensor:
    images, chosen = batch["image"], edit.chosen
    return inpaint(
        edit.model,
        images,
        batch["mask"],
        torch.as_tensor(batch["label"]),
        int(batch["seed"][0]),
        chosen["repeats"],
        len(images),
        dtype=edit.dtype,
        guidance_scale=chosen["guidance_scale"],
        **edit.steps,
    )


def _anomaly_map(edit: Edit, batch: Batch) -> Tensor:
    images, chosen = batch["image"], edit.chosen
    return anomaly_map(
        edit.model,
        images,
        torch.as_tensor(batch["label"]),
        chosen["strength"],
        chosen["guidance_scale"],
        chosen["smoothing"],
        seed=int(batch["seed"][0]),
        batch_size=len(images),
        dtype=edit.dtype,
        **edit.steps,
    )


def _interpolate(edit: Edit, batch: Batch) -> Tensor:
    if edit._frames is None:  # the two inversions are those of all frames
        ends = torch.stack([batch["image"][0].cpu(), batch["other"][0]])
        labels = torch.tensor([int(batch["own_label"][0]), int(batch["other_label"][0])])
        labels = _filled(edit.model, ends, labels)
        edit._frames = interpolate(
            edit.model, ends[0], ends[1], edit.number, labels, len(batch["image"]), dtype=edit.dtype, **edit.steps
        )
    return edit._frames[torch.as_tensor(batch["index"])]


def _classify(edit: Edit, batch: Batch) -> Tensor:
    return classification(edit, batch).probabilities


def classification(edit: Edit, batch: Batch) -> Classification:
    """Classify the images of a batch by the settings of an edit."""
    images, chosen = batch["image"], edit.chosen
    return classify(
        edit.model,
        images,
        chosen["temperature"],
        chosen["num_levels"],
        int(batch["seed"][0]),
        batch_size=len(images),
        dtype=edit.dtype,
    )


STEPS = {"num_inference_steps": None, "spacing": None}
EDITS: dict[str, Kind] = {
    "reconstruct": Kind(_reconstruct),
    "counterfactual": Kind(
        _counterfactual, {"strength": STRENGTH, "guidance_scale": GUIDANCE_SCALE, **STEPS}, needs_label=True
    ),
    "variations": Kind(_variations, {"number": 1, "strength": 0.5, "guidance_scale": None, **STEPS}, needs_label=False),
    "inpaint": Kind(_inpaint, {"repeats": REPEATS, "guidance_scale": None, **STEPS}, needs_label=True),
    "anomaly_map": Kind(
        _anomaly_map,
        {
            "strength": ANOMALY_STRENGTH,
            "guidance_scale": GUIDANCE_SCALE,
            "smoothing": SMOOTHING,
            "threshold": None,
            **STEPS,
        },
        needs_label=True,
    ),
    "interpolate": Kind(_interpolate, {"number": 8, **STEPS}),
    "classify": Kind(_classify, {"temperature": None, "num_levels": 32}, writes_images=False),
}
"""By the names that ``edit`` takes."""


class EditPrepareBatch:
    """Prepares images and what the plan says of them for an ``Edit``."""

    def __call__(
        self, batch: dict[str, Any], device: torch.device, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[Tensor, None, tuple[()], dict[str, Any]]:
        """Turn a batch of ``EditImages`` into (images (B, C, H, W), None, (), the batch)."""
        return batch["image"], None, (), {"batch": batch}


def _chosen(edit: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of an edit; raise a ValueError for one that it does not use or that is out of range."""
    usual = EDITS[edit].settings
    for name, value in given.items():
        if value is not None and name not in usual:
            used = f"uses {', '.join(usual)}" if usual else "uses no such setting"
            raise ValueError(f"{name} {value!r} has no effect on edit {edit}, which {used}: leave it out")
    chosen = {name: value if given[name] is None else given[name] for name, value in usual.items()}
    for name, least in {"number": 2 if edit == "interpolate" else 1, "num_levels": 2, "repeats": 1}.items():
        if name in chosen:
            check_counts(least, **{name: chosen[name]})
    if chosen.get("temperature") is not None:
        check_numbers(above=True, temperature=chosen["temperature"])
    if chosen.get("threshold") is not None:
        check_numbers(threshold=chosen["threshold"])
    if edit in ("counterfactual", "anomaly_map"):
        check_numbers(**{name: chosen[name] for name in ("guidance_scale", "smoothing") if name in chosen})
    return chosen


def _check_label(edit: str, label: Any) -> None:
    needed = EDITS[edit].needs_label
    if needed and label is None:
        raise ValueError(f"label must be given for edit {edit}: the number or name of the class that it shows")
    if needed is None and label is not None:
        raise ValueError(f"label {label!r} has no effect on edit {edit}: leave it out")


def _filled(model: Model, images: Tensor, labels: Tensor) -> Tensor:
    """Return labels (B,) with those that are unknown found by ``classify``, of the images that need it alone."""
    labels, unknown = labels.clone(), (labels == NO_LABEL).nonzero().flatten()
    if len(unknown):
        labels[unknown] = own_labels(model, images[unknown], None, len(unknown)).to(labels.device)
    return labels
