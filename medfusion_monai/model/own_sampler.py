"""The sampler that a model's weights define."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from medfusion_monai.baselines.gan_sampler import GanSampler
from medfusion_monai.diffusion.inferer import FULL_DECODER, LatentDiffusionSampler
from medfusion_monai.diffusion.samplers import SAMPLERS
from medfusion_monai.runtime.values import check_image_size
from medfusion_monai.sampling.plan import parse_negative_label
from medfusion_monai.weights.guidance_model import NO_GUIDE, SETTING
from medfusion_monai.weights.model_info import found_at, is_tuned, model_info_path

if TYPE_CHECKING:
    from medfusion_monai.model.trained_model import Model

GUIDANCE = ("guidance_scale", "negative_label", "guidance_interval")
"""Settings of a sampler that do not depend on the way in which it takes its steps."""
TUNED = ("sampler", "num_inference_steps", "spacing")
"""Settings that weights for few steps are tuned to, besides guidance."""


def make_sampler(model: Model, network: Any = None, **choices: Any) -> Any:
    """Return the sampler that a model's weights define, with all choices that are not None in place of theirs.

    If another ``sampler`` is chosen, settings that are not chosen with it have that sampler's own defaults. If
    ``guidance_scale`` 1 is chosen, a negative label, an interval or a guide of the weights is left out with the
    guidance. Weights that have a guide (``Model.own_guide``) are guided by it with any other scale.

    Args:
        model: with schedule, class names and image size.
        network: to sample; None for the model's.
        choices: arguments of ``LatentDiffusionSampler``; ``negative_label`` may be the name of a class, or a list with
            one class per label; weights with a guide of their own then need a ``guidance_scale`` too.
            ``guidance_model``, the path of other weights, is read as the ``guide``; ``none`` guides by the label
            whatever guides the weights, with a ``guidance_scale`` that is chosen too.
            ``decoder`` is ``full`` (the autoencoder's own), ``small`` (see ``Model.load_decoder``) or a file.

    Returns:
        A ``LatentDiffusionSampler``; for a GAN, a ``GanSampler``.

    Raises:
        ValueError: for a setting out of range, or a ``guidance_model`` or ``decoder`` that does not fit; for weights
            that are tuned for few steps, for another sampler, number of steps or guidance; for a GAN, for any setting
            but ``dtype``, and for another image size than that of its weights.
    """
    chosen = {name: value for name, value in choices.items() if value is not None}
    if chosen.get("decoder") == FULL_DECODER:
        del chosen["decoder"]
    if not model.has_latents:
        return _gan_sampler(model, **chosen)
    _refuse_untuned(model, chosen)
    if chosen.get("negative_label") is not None:
        chosen["negative_label"] = parse_negative_label(chosen["negative_label"], model.class_names)
    known = dict(model.info.get("sampler", {}))
    if chosen.get("sampler", known.get("sampler")) != known.get("sampler"):
        known = {name: value for name, value in known.items() if name in (*GUIDANCE, SETTING)}
    _choose_guide(model, chosen, known)
    if "decoder" in chosen:
        chosen["decoder"] = model.load_decoder(chosen["decoder"])
    autoencoder = (model.network if network is None else network).autoencoder
    check_image_size(model.image_size, autoencoder.downsampling_factor)
    shape = autoencoder.latent_shape(model.image_size)
    try:
        return LatentDiffusionSampler(model.schedule, shape, **{**known, **chosen})
    except TypeError as error:  # an unknown argument
        raise ValueError(
            f"the sampler settings of {model_info_path(model.path)}, or those chosen, are invalid: {error}"
        ) from error


def _choose_guide(model: Model, chosen: dict[str, Any], known: dict[str, Any]) -> None:
    """Put the guide of a sampler into the chosen settings, and take from the known ones what does not go with it."""
    given = chosen.pop(SETTING, None)
    has_own = known.pop(SETTING, None) is not None
    by_label = given == NO_GUIDE or "negative_label" in chosen
    if chosen.get("guidance_scale") == 1.0 or (has_own and by_label):  # the own scale is meant for the own guide
        for name in GUIDANCE:
            known.pop(name, None)
    if given not in (None, NO_GUIDE):
        chosen["guide"] = model.load_guide(given)
        known.pop("negative_label", None)
    elif has_own and not by_label and chosen.get("guidance_scale") != 1.0:
        chosen["guide"] = model.own_guide


def _refuse_untuned(model: Model, chosen: dict[str, Any]) -> None:
    """Raise a ValueError for settings that need other weights: those tuned for few steps, or those that are not."""
    known = dict(model.info.get("sampler", {}))
    if not is_tuned(model.info):
        if "sampler" in chosen and chosen["sampler"] in SAMPLERS and SAMPLERS[chosen["sampler"]].tuned:
            raise ValueError(
                f"sampler {chosen['sampler']!r} needs weights that are tuned for few steps, {model.path} are not: "
                "leave out sampler, or tune them (train_few_steps)"
            )
        return
    fixed = {name: known.get(name) for name in (*TUNED, *GUIDANCE)} | {SETTING: None}
    other = [f"{name} {chosen[name]!r}" for name, value in fixed.items() if name in chosen and chosen[name] != value]
    if other:
        raise ValueError(
            f"{', '.join(other)}: weights {model.path} are tuned to sample in {known['num_inference_steps']} steps by "
            f"{known['sampler']} with guidance_scale {known.get('guidance_scale', 1.0):g}, and in no other way: leave "
            "this out, or choose the weights that they were tuned from"
        )


def _gan_sampler(model: Model, dtype: torch.dtype = torch.float32, **others: Any) -> GanSampler:
    if others:
        raise ValueError(
            f"weights {model.path} are those of a GAN, which samples in one step and without guidance: leave out "
            f"{', '.join(others)}, or choose the weights of a diffusion model"
        )
    own = found_at(model.info, "image_size")
    if list(model.image_size) != own:
        raise ValueError(f"the GAN {model.path} draws images of {own} only: leave out image_size {model.image_size}")
    return GanSampler(dtype)
