"""The head of a card in YAML, by which the Hugging Face hub lists and filters models."""

from __future__ import annotations

import re

import yaml

UNKNOWN = "unknown"
"""Identifier of the hub for weights whose terms nobody stated."""
TAGS = ["monai", "medical", "synthetic-data"]
TASK = "unconditional-image-generation"
"""The hub's task of image generation without a text; it has none for classes."""
IDENTIFIER = re.compile(r"[a-z0-9]+(?:[.-][a-z0-9]+)*")


def card_head(library: str, license_id: str | None = None, has_latents: bool = True) -> str:
    """Return the head of a card, with the lines that enclose it.

    Args:
        library: with which the hub says that the model is loaded: ``monai`` or ``diffusers``.
        license_id: the hub's identifier of the terms for the weights, as ``cc-by-4.0``; None for unknown ones.
        has_latents: whether the weights are those of a latent diffusion model, not of a GAN.

    Raises:
        ValueError: for a licence that is not an identifier.
    """
    if license_id is not None and not IDENTIFIER.fullmatch(license_id):
        raise ValueError(
            "license must be one of the Hugging Face hub's identifiers in small letters, such as cc-by-4.0, cc0-1.0, "
            f"apache-2.0 or other, received {license_id!r}"
        )
    tags = [*TAGS, "latent-diffusion" if has_latents else "gan", "class-conditional"]
    entries = {"license": license_id or UNKNOWN, "library_name": library, "pipeline_tag": TASK, "tags": tags}
    return f"---\n{yaml.safe_dump(entries, sort_keys=False)}---\n\n"
