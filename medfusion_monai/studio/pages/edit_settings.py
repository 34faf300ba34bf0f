"""The settings of the edits: each edit shows those that it uses."""

from __future__ import annotations

from typing import Any

from nicegui import ui

from medfusion_monai.editing.anomaly import ANOMALY_STRENGTH, SMOOTHING
from medfusion_monai.editing.counterfactuals import GUIDANCE_SCALE, STRENGTH
from medfusion_monai.editing.inpainting import REPEATS
from medfusion_monai.studio.pages.fields import SliderField, class_field, class_of, number_field, value_of
from medfusion_monai.studio.pages.visit import Visit

WORDS = {
    "counterfactual": (
        "Counterfactual: as another class",
        "What the image would look like with another class: what the model associates with it, not what causes it.",
    ),
    "variations": ("Variations: images that resemble it", "Noise is added to the image and removed again."),
    "inpaint": (
        "Inpaint: new content under a mask",
        "Draw where to sample. What is under the mask has no influence; pixels outside stay exactly as they are.",
    ),
    "anomaly_map": (
        "Anomaly map: what differs from healthy",
        "How much each pixel changes when noise is added and removed again as healthy.",
    ),
    "reconstruct": ("Reconstruct: through the autoencoder", "What the autoencoder keeps of the image."),
    "classify": (
        "Classify: probabilities of the classes",
        "Which class explains the image best. Probabilities are too close to 0 and 1: see the documentation.",
    ),
}
"""Title and explanation of each edit."""
USED = {
    "counterfactual": ("label", "own_label", "strength", "guidance_scale"),
    "variations": ("own_label", "strength", "number", "seed"),
    "inpaint": ("label", "seed", "repeats"),
    "anomaly_map": ("label", "strength", "guidance_scale", "smoothing"),
    "reconstruct": (),
    "classify": (),
}
"""Settings that the page offers, by edit."""
CLASS_TITLES = {"counterfactual": "Show as class", "inpaint": "Class", "anomaly_map": "Healthy class"}


class EditSettings:
    """Fields of all settings, of which those of one edit are shown.

    Args:
        visit: whose model and limits hold.
    """

    def __init__(self, visit: Visit) -> None:
        names, limits = visit.class_names, visit.studio.limits
        most = min(5.0, limits.guidance_scale)
        with ui.element("div").classes("settings"):
            self.label = class_field("Class", names)
            self.own_label = class_field("Class of the image", names, unknown="find it")
            self.strength = SliderField("Strength", STRENGTH, 0.1, 1.0, 0.05)
            self.guidance = SliderField("Guidance", GUIDANCE_SCALE, 0.5, most, 0.25)
            self.smoothing = SliderField("Smoothing, in pixels", SMOOTHING, 0.0, 8.0, 0.5)
            with ui.element("div").classes("pair"):
                self.number = number_field("Images", 4, 1, limits.count)
                self.repeats = number_field("Repeats of a step", REPEATS, 1, limits.repeats)
                self.seed = number_field("Seed", 0, 0, limits.seed)
        self.label.set_value(len(names) - 1)
        self._boxes: dict[str, ui.element] = {
            "label": self.label,
            "own_label": self.own_label,
            "strength": self.strength.box,
            "guidance_scale": self.guidance.box,
            "smoothing": self.smoothing.box,
            "number": self.number,
            "repeats": self.repeats,
            "seed": self.seed,
        }

    def show(self, edit: str) -> None:
        """Show the settings that an edit uses."""
        for name, box in self._boxes.items():
            box.set_visibility(name in USED[edit])
        self.label.props["label"] = CLASS_TITLES.get(edit, "Class")
        self.strength.set(ANOMALY_STRENGTH if edit == "anomaly_map" else STRENGTH)
        if edit == "anomaly_map":
            self.label.set_value(0)

    def set_own_label(self, label: int) -> None:
        """Set the class of the image, -1 if it is unknown, and another one to show."""
        self.own_label.set_value(label)
        if label >= 0:
            self.label.set_value(0 if label else len(self.label.options) - 1)

    def values(self, edit: str) -> dict[str, Any]:
        """Return the values of the settings that an edit uses.

        Raises:
            ValueError: if a number is out of range.
        """
        readers = {
            "label": lambda: class_of(self.label),
            "own_label": lambda: class_of(self.own_label),
            "strength": lambda: self.strength.value,
            "guidance_scale": lambda: self.guidance.value,
            "smoothing": lambda: self.smoothing.value,
            "number": lambda: value_of(self.number),
            "repeats": lambda: value_of(self.repeats),
            "seed": lambda: value_of(self.seed),
        }
        return {name: readers[name]() for name in USED[edit]}
