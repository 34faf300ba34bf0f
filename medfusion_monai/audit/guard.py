"""A filter for sampling that detects images too close to a training image before they are written."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from medfusion_monai.audit.fingerprints import FLIPS, Prints, fingerprint
from medfusion_monai.audit.matching import Matcher
from medfusion_monai.audit.statistics import Calibration
from medfusion_monai.runtime.files import file_sha256, renamed_when_whole

GUARD_NAME = "copy_guard.npz"
"""File of the guard in the folder of an audit. It holds small pictures of patients: keep it where those may be."""

_FORMAT = "medfusion copy guard 2"


class GuardError(ValueError):
    """A guard that is missing, damaged or of another version."""


class Verdict(NamedTuple):
    """The verdict of a guard on images.

    Attributes:
        copies: (B,), booleans.
        scores: (B,), below the threshold for a copy.
        places: (B,), index of the nearest training image among those in the guard, without repetitions.
    """

    copies: Tensor
    scores: Tensor
    places: Tensor


class CopyGuard:
    """Detects copies of training images by pixels and structure.

    An image gets the same verdict in any batch, and no network is needed.

    Args:
        training: fingerprints (N, 64, 64) of the training images.
        held_out: likewise of images that were not trained on.
        calibration: of the scores of the held-out images by pixels and structure.
        size: height and width of the images behind the fingerprints; others are resized to it, because a sharper image
            has another fingerprint.
        flips: key of ``FLIPS``: how a copy may be mirrored.
        trained_on: ``fingerprint`` of the list of training images.
    """

    def __init__(
        self,
        training: Tensor,
        held_out: Tensor,
        calibration: Calibration,
        size: Sequence[int],
        flips: str = "horizontal",
        trained_on: str | None = None,
    ) -> None:
        self.trained_on = trained_on
        self.fine = {"training": training, "held_out": held_out}
        self.calibration, self.size, self.flips = calibration, [int(side) for side in size], flips
        # Queries belong to none of these patients, so each image counts as a patient of its own.
        prints = [Prints(fine, None, torch.arange(len(fine))) for fine in self.fine.values()]
        self.matcher = Matcher(prints[0], prints[1], flips)

    def check(self, images: Tensor) -> Verdict:
        """Check images (B, C, H, W) in [0, 1], of any size, for copies.

        Raises:
            ValueError: for another shape, or values that are not finite.
        """
        images = images.detach().float().cpu()
        if images.ndim == 4 and len(images) and list(images.shape[-2:]) != self.size:
            images = F.interpolate(images, size=self.size, mode="bilinear", antialias=True)
        fine = fingerprint(images)
        nobody = torch.tensor([-1])
        found = [self.matcher.match(Prints(one[None], None, nobody)) for one in fine]  # singly: sums vary by batch
        scores = torch.cat([match.scores for match in found]) if found else torch.empty(0)
        places = torch.cat([match.places for match in found]) if found else torch.empty(0, dtype=torch.long)
        return Verdict(scores < self.calibration.threshold, scores, places)

    def save(self, folder: str | Path) -> Path:
        """Write ``copy_guard.npz`` into a folder and return its path."""
        own = {"flips": self.flips, "size": self.size, "trained_on": self.trained_on}
        facts = json.dumps({"format": _FORMAT, **own, **self.calibration._asdict()})
        arrays = {name: fine.numpy() for name, fine in self.fine.items()}
        path = Path(folder) / GUARD_NAME
        body = io.BytesIO()
        np.savez_compressed(body, facts=np.array(facts), digest=np.array(_digest(facts, arrays)), **arrays)  # type: ignore[arg-type]
        with renamed_when_whole(path) as partial:
            partial.write_bytes(body.getvalue())
        return path


def load_guard(
    path: str | Path | None, trained_on: str | None = None, size: Sequence[int] | None = None
) -> CopyGuard | None:
    """Read a guard.

    Args:
        path: the folder of an audit, or its ``copy_guard.npz``; None for no guard.
        trained_on: ``fingerprint`` of the images that the model was trained on; None if it is unknown.
        size: height and width of the images to judge; None for any.

    Raises:
        GuardError: if it is missing, damaged, of another version, of other training images, or of another size.
    """
    if path is None:
        return None
    path = _guard_file(path)
    advice = "Run medfusion audit again with the version that samples"
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("training", "held_out")}
            text, digest = str(file["facts"]), str(file["digest"])
        facts = json.loads(text)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise GuardError(f"{path} cannot be read as a copy guard: {error}. {advice}") from error
    if facts.get("format") != _FORMAT or facts.get("flips") not in FLIPS or digest != _digest(text, arrays):
        raise GuardError(f"{path} is damaged or of another version: {facts.get('format')!r}. {advice}")
    calibration = Calibration(*(facts[name] for name in Calibration._fields))
    prints = {name: torch.from_numpy(array) for name, array in arrays.items()}
    if None not in (trained_on, facts["trained_on"]) and trained_on != facts["trained_on"]:
        raise GuardError(
            f"{path} guards other training images than those of the model (fingerprint {facts['trained_on']}, "
            f"model.json has {trained_on}): name the folder of an audit of this model"
        )
    if size is not None and list(size) != facts["size"]:
        raise GuardError(
            f"{path} was made for images of {facts['size']}, height and width, but {list(size)} are sampled: sample at "
            "the size of the audit, or audit images of this size"
        )
    own = (calibration, facts["size"], facts["flips"], facts["trained_on"])
    return CopyGuard(prints["training"], prints["held_out"], *own)


def guard_sha256(path: str | Path | None) -> str:
    """Return the SHA-256 of the guard in an audit's folder, or ``none``.

    Images written with another guard belong to another run.
    """
    return "none" if path is None else file_sha256(_guard_file(path))


def _guard_file(path: str | Path) -> Path:
    path = Path(path) / GUARD_NAME if Path(path).is_dir() else Path(path)
    if not path.is_file():
        raise GuardError(
            f"{path} does not exist: run medfusion audit with at least 50 held-out images and name its folder"
        )
    return path


def _digest(facts: str, arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256(facts.encode())
    for name in sorted(arrays):
        digest.update(repr((name, arrays[name].shape, str(arrays[name].dtype))).encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()
