"""The tab about the model: what it was trained on, its audit, and its limits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nicegui import ui

import medfusion_monai
from medfusion_monai.studio.audits import audit_verdict
from medfusion_monai.studio.pages.text import text
from medfusion_monai.studio.pages.visit import Visit

LIMITS = (
    "Research software, not for diagnosis.",
    "Generated images are synthetic: anatomy and findings in them can be wrong, and an image need not show its class.",
    "A generative model can reproduce training images: audit it before sharing samples or weights.",
    "An edited image still shows its patient. It is as confidential as the original.",
    "A counterfactual shows what the model associates with a class, not what causes it, and not how a patient would "
    "develop.",
)
PRIVACY = (
    "The studio runs on the machine that shows it and asks no other host for anything. Uploaded, generated and edited "
    "images are in memory alone; they are gone soon after the page is closed or reloaded. Download what you need."
)
NO_AUDIT = "No audit lies beside the weights: medfusion audit looks for copies of training images."


def show_about(visit: Visit) -> None:
    """Show the model, its audit, limits and privacy."""
    with ui.element("div").classes("about"):
        text("h2", "The model")
        with ui.element("dl"):
            for title, value in _facts(visit):
                text("dt", title)
                text("dd", value)
        text("h2", "Copies of training images")
        ui.label(audit_verdict(visit.studio) or NO_AUDIT)
        text("h2", "Limits")
        with ui.element("ul"):
            for limit in LIMITS:
                text("li", limit)
        text("h2", "Privacy")
        ui.label(PRIVACY)


def _facts(visit: Visit) -> Iterator[tuple[str, str]]:
    model = visit.studio.model
    yield "Weights", model.path.name
    shares: Sequence[float | None] = model.class_shares or [None] * len(model.class_names)
    for number, (name, share) in enumerate(zip(model.class_names, shares, strict=True)):
        known = "" if share is None else f", {100 * share:.1f}% of the training images"
        yield f"Class {number}", f"{name}{known}"
    height, width = model.image_size
    yield "Images", f"{width} x {height} pixels, {'gray' if model.image_channels == 1 else 'RGB'}"
    training = model.info.get("training", {})
    if training.get("image_count"):
        yield "Trained on", f"{training['image_count']:,} images, {training.get('steps', 0):,} steps"
    usual = visit.studio.sampler_defaults
    yield "Sampler", f"{usual['sampler']}, {usual['num_inference_steps']} steps, guidance {usual['guidance_scale']:g}"
    yield "Real images", "none, see --data" if visit.studio.data is None else f"{sum(visit.studio.data.counts):,}"
    yield "Version", medfusion_monai.__version__
