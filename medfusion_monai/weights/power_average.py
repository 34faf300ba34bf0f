"""Averages of weights over any length, rebuilt after the training from stored ones (Karras et al. 2024, section 3).

After step t a power average of exponent gamma is the mean of all weights so far, those of step k weighted by the
integral of ``(gamma + 1) tau^gamma / t^(gamma + 1)`` from k - 1 to k. It is updated as any moving average, with decay
``(1 - 1 / t)^(gamma + 1)``. Its length is the standard deviation of that profile as a share of the training so far.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from medfusion_monai.runtime.errors import WeightsError
from medfusion_monai.runtime.values import is_number
from medfusion_monai.weights.model_info import write_model_info
from medfusion_monai.weights.state_dict import save_atomically

LENGTHS = (0.05, 0.10)
"""Of the averages that a training stores."""
LONGEST = 0.28
"""Just below the length of the plain mean of all weights, 1 / sqrt(12)."""
LARGEST_ERROR = 0.1
"""Of a rebuilt profile, as a share of the profile's norm."""


class Profile(NamedTuple):
    """The weights that a power average covers."""

    step: int
    length: float

    @property
    def gamma(self) -> float:
        """Its exponent (Karras et al. 2024, appendix C)."""
        share = self.length**-2
        return float(np.roots([1.0, 7.0, 16.0 - share, 12.0 - share]).real.max())


def power_decay(length: float, step: int) -> float:
    """Return the decay of a power average at an update, counted from 1; the first one discards the initial weights."""
    return (1.0 - 1.0 / step) ** (Profile(step, length).gamma + 1.0)


def inner_product(one: Profile, other: Profile) -> float:
    """Return the integral of the product of two profiles."""
    first, last = sorted((one, other))
    exponents = first.gamma, last.gamma
    scale = math.prod(gamma + 1.0 for gamma in exponents) / (sum(exponents) + 1.0)
    return scale * (first.step / last.step) ** last.gamma / last.step


def coefficients(stored: Sequence[Profile], wanted: Profile) -> tuple[list[float], float]:
    """Return the factors of stored averages whose sum has the profile nearest to a wanted one, and how near it is.

    Args:
        stored: their profiles.
        wanted: of the average to rebuild.

    Returns:
        A factor per stored average, which sum to 1, and the norm of the difference of the profiles over that of the
        wanted one.
    """
    products = np.array([[inner_product(one, other) for other in stored] for one in stored])
    aims = np.array([inner_product(one, wanted) for one in stored])
    size = inner_product(wanted, wanted)
    # Least squares with the sum fixed to 1 by a multiplier, scaled to the wanted profile.
    count = len(stored)
    system = np.ones((count + 1, count + 1))
    system[:count, :count], system[count, count] = products / size, 0.0
    solution = np.linalg.lstsq(system, np.append(aims / size, 1.0), rcond=1e-12)[0][:count]
    difference = 1.0 - 2.0 * solution @ aims / size + solution @ products @ solution / size
    return solution.tolist(), math.sqrt(max(0.0, difference))


def snapshot_files(folder: str | Path) -> dict[int, Path]:
    """Return the snapshots of a folder by step, in ascending order."""
    found = {int(path.stem): path for path in Path(folder).glob("*.pt") if path.stem.isdigit()}
    return dict(sorted(found.items()))


def read_snapshot(path: Path) -> dict[str, Any]:
    """Read a snapshot; nothing in it is executed.

    Raises:
        WeightsError: if it is damaged or something else.
    """
    try:
        snapshot = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if int(path.stem) == snapshot["step"] and set(snapshot["averages"]) == set(LENGTHS):
            return snapshot
    except Exception as error:
        raise WeightsError(f"snapshot {path} cannot be read: {error}. Delete it to leave it out") from error
    raise WeightsError(f"snapshot {path} is of another step or of other averages. Delete it to leave it out")


def rebuild_average(folder: str | Path, length: float, step: int | None = None) -> tuple[dict[str, Tensor], float]:
    """Rebuild the average of weights over any length, after the step of any snapshot.

    Args:
        folder: of the snapshots of one training.
        length: from above 0 to ``LONGEST``; short ones are noisy, long ones lag behind.
        step: of a snapshot; None for the last one.

    Returns:
        The weights, float32, and the error of the profile, see ``coefficients``.

    Raises:
        WeightsError: if there are no snapshots, or they are damaged or too few for this length.
        ValueError: for a length or step out of range.
    """
    if not is_number(length) or not 0.0 < length <= LONGEST:
        raise ValueError(f"length must be above 0 and at most {LONGEST}, received {length!r}")
    files, step = _snapshots_and_step(folder, step)
    used = [number for number in files if number <= step]
    factors, error = coefficients([Profile(number, own) for number in used for own in LENGTHS], Profile(step, length))
    if error > LARGEST_ERROR:
        raise WeightsError(
            f"the snapshots until step {step} in {folder} give an average of length {length:g} only to within "
            f"{error:.0%}: choose a length nearer to {LENGTHS[0]:g} or {LENGTHS[1]:g}"
        )
    total: dict[str, Tensor] = {}
    for place, number in enumerate(used):
        averages = read_snapshot(files[number])["averages"]
        for factor, own in zip(factors[2 * place : 2 * place + 2], LENGTHS, strict=True):
            _add(total, averages[own], factor)
    return {name: value.float() if value.dtype is torch.float64 else value for name, value in total.items()}, error


def write_average(folder: str | Path, output: str | Path, length: float, step: int | None = None) -> tuple[Path, float]:
    """Write a model with an average of another length as ``model.pt`` and ``model.json``.

    Args:
        folder: of the snapshots of one training.
        output: folder of the model.
        length: as in ``rebuild_average``.
        step: likewise.

    Returns:
        The place of the weights, and the error of the profile.

    Raises:
        WeightsError: as in ``rebuild_average``, or if ``output`` has a model.
        ValueError: as in ``rebuild_average``.
    """
    place = Path(output) / "model.pt"
    if place.exists():
        raise WeightsError(f"{place} exists: choose another folder")
    unet, error = rebuild_average(folder, length, step)
    files, step = _snapshots_and_step(folder, step)
    snapshot = read_snapshot(files[step])
    info = json.loads(snapshot["info"])
    info["training"] |= {"steps": step, "average": length}
    info["training"].pop("finished", None)  # that of the training, whose end may be later
    parts = {"autoencoder": snapshot["autoencoder"], "unet": unet}
    save_atomically({f"{part}.{name}": value for part, state in parts.items() for name, value in state.items()}, place)
    write_model_info(place, info)
    return place, error


def _snapshots_and_step(folder: str | Path, step: int | None) -> tuple[dict[int, Path], int]:
    """Return the snapshots of a folder, and the step that was chosen among theirs; the last one for None."""
    files = snapshot_files(folder)
    if not files:
        raise WeightsError(f"{folder} has no snapshots of averages: train with --average_snapshots 16")
    step = max(files) if step is None else step
    if step not in files:
        raise ValueError(
            f"step must be that of a snapshot in {folder}, {', '.join(map(str, files))}; received {step!r}"
        )
    return files, step


def _add(total: dict[str, Tensor], average: Mapping[str, Tensor], factor: float) -> None:
    for name, value in average.items():
        if value.dtype is not torch.float16:  # a buffer: the last one counts
            total[name] = value
            continue
        part = value.double() * factor
        total[name] = total[name].add_(part) if name in total else part
