"""What weights were trained with, in a file beside them: ``model.json`` beside ``model.pt`` or ``.safetensors``."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medfusion_monai.files import renamed_when_whole
from medfusion_monai.weights.checksums import forget_checksum
from medfusion_monai.weights.state_dict import WeightsError, check_listed, read_safetensors_metadata

logger = logging.getLogger(__name__)

METADATA_KEY = "model"
"""Name of the same JSON in the header of a safetensors file."""
MEND = "Fetch it again, or delete it"


def model_info_path(path: str | Path) -> Path:
    """Give the place of the file that belongs to the weights at ``path``."""
    return Path(path).with_suffix(".json")


def write_model_info(path: str | Path, info: Mapping[str, Any]) -> None:
    """Write beside the weights at ``path`` what they were trained with, as JSON."""
    file = model_info_path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    with renamed_when_whole(file) as partial:
        partial.write_text(json.dumps(dict(info), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        forget_checksum(file)


def read_model_info(path: str | Path) -> dict[str, Any] | None:
    """Read what the weights at ``path`` were trained with, or None where nothing says so.

    It is in the file beside them or, where there is none, in the header of a safetensors file.

    Raises:
        WeightsError: if the file is no JSON object, or not the one that ``checksums.sha256`` beside it lists.
    """
    file = model_info_path(path)
    if not file.is_file():
        text = read_safetensors_metadata(path).get(METADATA_KEY)
        return None if text is None else _object(text, Path(path))
    check_listed(file)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"{file} cannot be read as JSON: {error}. {MEND}") from error
    return _object(text, file)


def check_model_info(path: str | Path, expected: Mapping[str, Any]) -> None:
    """Compare what the weights at ``path`` were trained with and what a run expects; nothing is known of other weights.

    Another ``image_size`` is only warned of: the networks take any.

    Raises:
        WeightsError: naming each key that differs, and both values.
    """
    info = read_model_info(path)
    if info is None:
        logger.info("no %s: the settings are not compared with those of the training", model_info_path(path))
        return
    wanted = json.loads(json.dumps(dict(expected)))
    differing = [key for key in wanted if key in info and info[key] != wanted[key]]
    if "image_size" in differing:
        logger.warning(
            "the weights were trained with image_size %s, this run has %s: images of another size look worse",
            info["image_size"],
            wanted["image_size"],
        )
    differences = [f"{key} {info[key]}, this run has {wanted[key]}" for key in differing if key != "image_size"]
    if differences:
        file = model_info_path(path)
        beside = f" (says {file}; delete it if it does not belong to these weights)" if file.is_file() else ""
        raise WeightsError(
            f"weights {path} were trained with {'; '.join(differences)}{beside}: give the values of the training, or "
            "name other weights"
        )


def read_class_shares(path: str | Path, class_names: Sequence[str]) -> list[float]:
    """Give the shares of the classes in the training data of the weights at ``path``, in the order of the names.

    Raises:
        WeightsError: if nothing says what they were.
    """
    info = read_model_info(path) or {}
    known = dict(zip(info.get("class_names", []), info.get("class_shares", []), strict=False))
    unknown = [name for name in class_names if name not in known]
    if unknown:
        raise WeightsError(
            f"class_shares real needs the shares of {unknown} in the training data, and {model_info_path(path)} does "
            "not give them: give a list, e.g. --class_shares '[0.97, 0.03]'"
        )
    return [known[name] for name in class_names]


def _object(text: str, file: Path) -> dict[str, Any]:
    try:
        info = json.loads(text)
    except ValueError as error:
        raise WeightsError(f"{file} cannot be read as JSON: {error}. {MEND}") from error
    if not isinstance(info, dict):
        raise WeightsError(f"{file} holds no JSON object. {MEND}")
    return info
