"""Fixtures that all tests share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from torch import Tensor

VECTORS = Path(__file__).parent / "vectors"


@pytest.fixture(scope="session")
def vectors() -> Callable[[str], tuple[dict[str, Tensor], dict[str, Any]]]:
    """Load tensors recorded from the published code, and the arguments behind them, by the name of their file."""

    def load(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        with safe_open(str(VECTORS / f"{name}.safetensors"), "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, no dict
            return tensors, json.loads(file.metadata()["case"])

    return load


@pytest.fixture(scope="session")
def published_state(vectors: Callable) -> Callable[[str], dict[str, Tensor]]:
    """Load the state dict, with published names, that a file of recorded tensors holds."""

    def load(name: str) -> dict[str, Tensor]:
        tensors, _ = vectors(name)
        return {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}

    return load


@pytest.fixture(scope="session")
def relative_error() -> Callable[[Tensor, Tensor], float]:
    """Give the largest absolute difference over the largest absolute expected value."""

    def measure(actual: Tensor, expected: Tensor) -> float:
        assert actual.numel() == expected.numel(), (actual.shape, expected.shape)
        difference = actual.detach().double().reshape(expected.shape) - expected.double()
        return (difference.abs().max() / expected.double().abs().max()).item()

    return measure
