"""What an image would look like with another class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from medfusion_monai.editing.diffusion_classifier import own_labels
from medfusion_monai.editing.edit_inputs import Labels, batches, checked_labels, images_to_edit
from medfusion_monai.editing.inversion import invert, regenerate
from medfusion_monai.model import Model

STRENGTH, GUIDANCE_SCALE = 0.5, 2.0


@torch.no_grad()
def counterfactual(
    model: Model,
    images: Tensor,
    label: Labels,
    own_label: Labels | None = None,
    strength: float = STRENGTH,
    guidance_scale: float = GUIDANCE_SCALE,
    own_pixels: bool = True,
    batch_size: int = 16,
    **choices: Any,
) -> Tensor:
    """Show images as they would look with another class.

    They are inverted under their own class and sampled under the other one from there.

    Args:
        model: a loaded model.
        images: (B, C, H, W) in [0, 1], of the model's size.
        label: the class to show, one for all or one per image. An image of this class comes back unchanged.
        own_label: the images' class, as ``label`` of ``invert``.
        strength: share of the noise levels that are inverted, in (0, 1]: the more, the larger the changes.
        guidance_scale: weight of the difference between the predictions under both classes; 1 is none beyond it.
        own_pixels: add the difference between the decoded counterfactual and the decoded image to the image: what the
            autoencoder loses stays, and so does every pixel that the change does not reach. If false, return the
            decoded counterfactual.
        batch_size: images at a time.
        choices: ``num_inference_steps``, ``spacing`` or ``dtype`` in place of the model's.

    Returns:
        (B, C, H, W) in [0, 1], float32, on the CPU.

    Raises:
        ValueError: for images of another form, an unknown class, or a setting out of range.
    """
    images_to_edit(model, images)
    target = checked_labels(model, label, len(images))
    own = own_labels(model, images, own_label, batch_size, "own_label")
    inversion = invert(model, images, own, strength, batch_size, **choices)
    changed = regenerate(model, inversion, target, guidance_scale, batch_size, choices.get("dtype", torch.float32))
    if not own_pixels:
        return changed
    plain = torch.cat([model.reconstruct(images[at]).cpu() for at in batches(len(images), batch_size)])
    return (images.cpu().float() + changed - plain).clamp(0.0, 1.0)
