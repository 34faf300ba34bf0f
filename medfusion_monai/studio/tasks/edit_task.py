"""Edits of one image as a job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from medfusion_monai.data.reading.images import pixel_digest
from medfusion_monai.editing.anomaly import DRAWS
from medfusion_monai.editing.diffusion_classifier import own_labels
from medfusion_monai.editing.edit_inputs import checked_images, noise_levels
from medfusion_monai.editing.edit_plan import numbered_files
from medfusion_monai.editing.edit_run import Edit
from medfusion_monai.editing.inpainting import checked_masks
from medfusion_monai.networks.unet import NO_LABEL
from medfusion_monai.sampling.plan import Label, parse_label
from medfusion_monai.studio.jobs import Job
from medfusion_monai.studio.service import Studio
from medfusion_monai.studio.tasks.steps import INVERSION_CALLS, add_pictures, classify_calls, followed

EDITS = ("reconstruct", "counterfactual", "variations", "inpaint", "anomaly_map")


def edit(
    studio: Studio,
    edit: str,
    image: Tensor,
    *,
    source: str,
    label: Label | None = None,
    own_label: Label | None = None,
    mask: Tensor | None = None,
    seed: int = 0,
    **settings: Any,
) -> Job:
    """Edit an image as ``run editing`` does.

    Args:
        studio: with the model.
        edit: a name in ``EDITS``.
        image: (1, C, H, W) in [0, 1], of the model's size.
        source: name of the image, for the manifest and the names of files.
        label: class that the edit shows, if it needs one.
        own_label: class of the image; None if it is unknown.
        mask: (1, 1, H, W) or (H, W), not 0 where to sample; for ``inpaint`` alone.
        seed: of edits that draw noise.
        settings: ``number``, ``strength``, ``guidance_scale``, ``smoothing``, ``repeats`` or ``num_inference_steps`` of
            ``Edit``; None for its own value. One that the edit does not use must be None.

    Raises:
        ValueError: for an unknown edit or class, an image or mask of another form, or a setting that has no effect, is
            out of range or above the limits.
    """
    if edit not in EDITS:
        raise ValueError(f"edit must be one of {', '.join(EDITS)}, received {edit!r}")
    _check_limits(studio, seed, settings)
    images = checked_images(studio.model, image, "image")[:1]
    editor = Edit(edit, studio.model, label=label, **settings)
    batch = {"image": images, "seed": [seed], **_labels_of(studio, label, own_label), **_mask_of(edit, mask, images)}
    rows = _rows(studio, editor, batch, source)
    common = studio.with_weights(editor.settings(1, "png"))
    finds_class = _needs_class(edit, batch)

    def work(job: Job) -> None:
        with followed(studio.model, job, _calls(editor) + finds_class * classify_calls(studio.model)):
            if finds_class:  # once, not per variation
                batch["own_label"] = own_labels(studio.model, images, None).cpu()
            for row in rows:
                output = editor(images, None, {**batch, "index": [row["index"]]})
                add_pictures(job, output, [{**row, **editor.figures(output[0]), **common}])

    return studio.jobs.submit(edit, work)


def _check_limits(studio: Studio, seed: int, settings: Mapping[str, Any]) -> None:
    names = ("num_inference_steps", "guidance_scale", "repeats", "smoothing")
    limited: dict[str, Any] = {name: settings.get(name) for name in names}
    studio.limits.check(0, seed=seed)
    studio.limits.check(count=settings.get("number"), **limited)


def _labels_of(studio: Studio, label: Label | None, own_label: Label | None) -> dict[str, Tensor]:
    names, given = studio.model.class_names, {"label": label, "own_label": own_label}
    return {
        name: torch.tensor([NO_LABEL if value is None else parse_label(value, names, name)])
        for name, value in given.items()
    }


def _mask_of(edit: str, mask: Tensor | None, images: Tensor) -> dict[str, Tensor]:
    if (edit == "inpaint") != (mask is not None):
        raise ValueError(
            "mask must be given for edit inpaint: mark what to sample"
            if mask is None
            else f"mask has no effect on edit {edit}: leave it out"
        )
    return {} if mask is None else {"mask": checked_masks(mask, images)}


def _rows(studio: Studio, editor: Edit, batch: Mapping[str, Any], source: str) -> list[dict[str, Any]]:
    """Return the lines of the manifest without settings, as those of ``run editing``."""
    label = int(batch["label"][0])
    shown = [batch[name][0].float().cpu().numpy() for name in ("image", "mask") if name in batch]
    own = {
        "label": label,
        "class_name": studio.model.class_names[label] if label >= 0 else "",
        "seed": batch["seed"][0],
        "source": source,
        "source_pixels": " ".join(pixel_digest(pixels) for pixels in shown),
        "own_label": int(batch["own_label"][0]),
    }
    return [{**own, **item} for item in numbered_files(source, editor.number, ".png")]


def _needs_class(edit: str, batch: Mapping[str, Any]) -> bool:
    """Return whether the class of the image must be found for an edit."""
    if int(batch["own_label"][0]) >= 0:
        return False
    return edit == "counterfactual" or (edit == "variations" and int(batch["label"][0]) < 0)


def _calls(editor: Edit) -> float:
    """Estimate how often an edit calls the UNet."""
    chosen = editor.chosen
    if editor.edit == "reconstruct":
        return 0.0
    if editor.edit == "inpaint":
        return chosen["repeats"] * editor.sampler.num_inference_steps
    levels = len(noise_levels(editor.sampler.timesteps, chosen["strength"])) - 1
    drawn = {"variations": editor.number, "anomaly_map": DRAWS}.get(editor.edit)
    return (INVERSION_CALLS + 2) * levels if drawn is None else drawn * (levels + 1)
