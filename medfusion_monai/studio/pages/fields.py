"""Inputs with labels and limits, and their values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nicegui import ui

from medfusion_monai.networks.unet import NO_LABEL


def number_field(label: str, value: float | None, low: float, high: float, step: float = 1) -> ui.number:
    """Show an input for a number between two limits, which ``value_of`` reads."""
    return ui.number(label, value=value, min=low, max=high, step=step).props("outlined dense").classes("field")


def value_of(field: ui.number, whole: bool = True) -> Any:
    """Return the number in a field.

    Raises:
        ValueError: if there is none, it is out of range, or not whole where it must be.
    """
    value, low, high = field.value, field.props["min"], field.props["max"]
    name = field.props["label"]
    if value is None or not low <= value <= high:
        raise ValueError(f"{name} must be between {low:g} and {high:g}: enter another number")
    if not whole:
        return float(value)
    if value != int(value):
        raise ValueError(f"{name} must be a whole number, received {value:g}")
    return int(value)


def class_field(label: str, class_names: Sequence[str], unknown: str = "") -> ui.select:
    """Show a choice of a class, whose value is its number.

    Args:
        label: of the field.
        class_names: in label order.
        unknown: a first choice for no class, whose value is -1.
    """
    options = {NO_LABEL: unknown} if unknown else {}
    options.update(enumerate(class_names))
    return choice_field(label, options, next(iter(options)))


def class_of(field: ui.select) -> int | None:
    """Return the number of the class in a field, None for no class."""
    return None if field.value == NO_LABEL else field.value


def choice_field(label: str, options: Mapping[Any, str], value: Any) -> ui.select:
    """Show a choice of one of several options, texts by value."""
    return ui.select(dict(options), label=label, value=value).props("outlined dense options-dense").classes("field")


class SliderField:
    """A slider with its label and value.

    Args:
        label: of the field.
        value: at first.
        low: smallest value.
        high: largest value.
        step: between two values.
        on_change: called with the new value.
    """

    def __init__(self, label: str, value: float, low: float, high: float, step: float, on_change: Any = None) -> None:
        with ui.element("div").classes("slider field") as self.box:
            with ui.element("div").classes("slider-head"):
                ui.label(label)
                shown = ui.label().classes("slider-value")
            self.slider = ui.slider(min=low, max=high, step=step, value=value, on_change=on_change)
            self.slider.props["aria-label"] = label
            shown.bind_text_from(self.slider, "value", lambda number: f"{number:g}")

    @property
    def value(self) -> float:
        """The value that is set."""
        return float(self.slider.value)

    def set(self, value: float) -> None:
        """Move the slider."""
        self.slider.set_value(value)
