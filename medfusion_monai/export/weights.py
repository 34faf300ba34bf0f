"""Export of a trained model's weights as safetensors, with a model card and checksums."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import medfusion_monai
from medfusion_monai.bundle import check_folders
from medfusion_monai.export.card import CardFacts, model_card
from medfusion_monai.export.model import TrainedModel, open_model
from medfusion_monai.reports.written import read_measured, read_object
from medfusion_monai.weights.checksums import CHECKSUMS, checksums_text
from medfusion_monai.weights.model_info import METADATA_KEY, model_info_path, read_model_info, write_model_info
from medfusion_monai.weights.state_dict import file_sha256, save_safetensors

WEIGHTS = "model.safetensors"
CARD = "README.md"
SIZES = ("autoencoder_", "unet_")
"""How the keys of the configs begin that say how large the networks are."""

PLACES = ("_dir", "_file", "_root")
"""How the keys of the configs end that name a place of this machine."""


def export_weights(
    bundle: str | Path,
    model_file: str | Path,
    output: str | Path,
    overlays: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    report: str | Path | None = None,
    audit: str | Path | None = None,
) -> list[Path]:
    """Write ``model.safetensors``, ``model.json``, the card ``README.md`` and ``checksums.sha256`` into a folder.

    The same model and reports give the same bytes. Nothing in them names a file's place.

    Args:
        bundle: folder of the bundle.
        model_file: ``models/model.pt``.
        output: folder of the files.
        overlays: files of ``configs`` that were merged after ``train.yaml`` in the training.
        overrides: keys that were given on the command line of the training.
        report: ``report.json`` of ``run evaluating``, for the card.
        audit: ``audit.json`` of ``medfusion audit``, for the card.

    Returns:
        The files.

    Raises:
        ValueError: for settings and weights that do not fit, reports of other weights, and files that cannot be read
            or written.
    """
    model = open_model(bundle, model_file, overlays, overrides)
    info = _model_info(model, model_file)
    sha256 = file_sha256(model_file)
    facts = CardFacts(
        metadata=read_object(Path(bundle) / "configs" / "metadata.json"),
        info=info,
        sizes={key: value for key, value in _plain(model).items() if key.startswith(SIZES)},
        parameters={
            name: sum(weight.numel() for weight in part.parameters()) for name, part in model.network.named_children()
        },
        overlays=[Path(name).name for name in overlays],
        options={key: value for key, value in (overrides or {}).items() if key in {*_plain(model), *model.settings}},
        report=None if report is None else read_measured(report, sha256),
        audit=None if audit is None else read_measured(audit, sha256),
    )
    card = model_card(facts)
    output = Path(output)
    check_folders([output])
    with tempfile.TemporaryDirectory(dir=output, prefix=".export.") as scratch:
        folder = Path(scratch)
        save_safetensors(model.network, folder / WEIGHTS, _header(info, facts))
        write_model_info(folder / WEIGHTS, info)
        (folder / CARD).write_text(card, encoding="utf-8")
        listed = checksums_text(path for path in folder.iterdir() if path.name != CARD)  # which is there to be edited
        (folder / CHECKSUMS).write_text(listed, encoding="utf-8")
        (output / CHECKSUMS).unlink(missing_ok=True)  # or a kill in between would leave files that it refuses
        names = [WEIGHTS, model_info_path(WEIGHTS).name, CARD, CHECKSUMS]
        for name in names:
            os.replace(folder / name, output / name)
    return [output / name for name in names]


def _model_info(model: TrainedModel, model_file: str | Path) -> dict[str, Any]:
    """What the weights were trained with: known keys alone, so that nothing else of a hospital's file goes out."""
    found = read_model_info(model_file) or {}
    known = [*model.settings, "class_shares", "version"]
    return {key: found.get(key, model.settings.get(key)) for key in known if key in found or key in model.settings}


def _header(info: Mapping[str, Any], facts: CardFacts) -> dict[str, str]:
    texts = {
        METADATA_KEY: info,
        "sizes": facts.sizes,
        "bundle": facts.metadata.get("name", ""),
        "bundle_version": facts.metadata.get("version", ""),
        "medfusion_monai": medfusion_monai.__version__,
    }
    return {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for key, value in texts.items()
    }


def _plain(model: TrainedModel) -> dict[str, Any]:
    """Give the keys of the configs that hold numbers, words or lists of them, and name no place."""
    config: dict[str, Any] = model.parser.get()
    return {key: value for key, value in config.items() if not key.endswith(PLACES) and _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, str):
        return value.isidentifier()
    return isinstance(value, int | float) or (isinstance(value, list) and all(map(_is_plain, value)))
