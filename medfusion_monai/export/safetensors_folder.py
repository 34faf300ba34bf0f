"""Export of a trained model's weights as safetensors, with a model card and checksums."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import medfusion_monai
from medfusion_monai.export.card import CardFacts, facts_of, model_card
from medfusion_monai.export.card_head import card_head
from medfusion_monai.export.metadata import METADATA, metadata_beside
from medfusion_monai.export.public import open_model, public_info
from medfusion_monai.export.shared_folder import CARD, refuse_other_files, written_whole
from medfusion_monai.model import Model
from medfusion_monai.report.read_back import read_measured, read_object
from medfusion_monai.runtime.files import file_sha256
from medfusion_monai.weights.assembled import save_guide
from medfusion_monai.weights.checksums import CHECKSUMS, checksums_text
from medfusion_monai.weights.guidance_model import NAME as GUIDE
from medfusion_monai.weights.guidance_model import guide_beside
from medfusion_monai.weights.model_info import info_header, model_info_path, write_model_info
from medfusion_monai.weights.state_dict import save_safetensors

WEIGHTS = "model.safetensors"
NAMES = (WEIGHTS, model_info_path(WEIGHTS).name, CARD, CHECKSUMS)


def export_weights(
    model_file: str | Path,
    output: str | Path,
    bundle: str | Path | None = None,
    report: str | Path | None = None,
    audit: str | Path | None = None,
    half: bool = False,
    license_id: str | None = None,
) -> list[Path]:
    """Write ``model.safetensors``, ``model.json``, the card ``README.md`` and ``checksums.sha256`` into a folder.

    Weights that name a guide bring it along, as ``guide.safetensors``. The same model and reports give the same bytes,
    and no path is in them.

    Args:
        model_file: weights, or a folder or bundle that contains them.
        output: folder of the files, with no others in it.
        bundle: folder of the bundle that the card describes; None for the one whose ``models`` contains the weights.
        report: ``report.json`` of ``run evaluating``, for the card.
        audit: ``audit.json`` of ``medfusion audit``, for the card.
        half: whether to store the weights in float16, in half the space.
        license_id: the Hugging Face hub's identifier of the terms for the weights; None for unknown ones.

    Returns:
        The files.

    Raises:
        ValueError: for weights that cannot be loaded, reports of other weights, other files in ``output``, and files
            that cannot be read or written.
    """
    model = open_model(model_file)
    guide = guide_beside(model.path, model.info)
    names = NAMES if guide is None else (*NAMES, GUIDE)
    refuse_other_files(output, names)
    head = card_head("monai", license_id, model.has_latents)
    facts = measured_facts(model, bundle, report, audit)
    card = model_card(facts)
    with written_whole(output, names) as folder:
        if guide is not None:
            guiding = open_model(guide)
            save_guide(guiding.network, public_info(guiding), folder, half)
        save_safetensors(model.network, folder / WEIGHTS, _header(facts.info, facts.metadata or {}), half)
        write_model_info(folder / WEIGHTS, facts.info)
        listed = checksums_text(folder.iterdir())  # not of the card, which may be edited
        (folder / CHECKSUMS).write_text(listed, encoding="utf-8")
        (folder / CARD).write_text(head + card, encoding="utf-8")
    return [Path(output) / name for name in names]


def measured_facts(
    model: Model, bundle: str | Path | None, report: str | Path | None, audit: str | Path | None
) -> CardFacts:
    """Return the facts about a model for its card.

    Args:
        model: whose weights exist.
        bundle: that the card describes; None for the one whose ``models`` contains the weights.
        report: ``report.json`` of ``run evaluating``.
        audit: ``audit.json`` of ``medfusion audit``.

    Raises:
        ValueError: for reports of other weights, and files that cannot be read.
    """
    sha256 = file_sha256(model.path)
    return facts_of(
        model,
        metadata=_metadata(model.path, bundle),
        report=None if report is None else read_measured(report, sha256),
        audit=None if audit is None else read_measured(audit, sha256),
    )


def _metadata(weights: Path, bundle: str | Path | None) -> dict[str, Any] | None:
    """Read ``metadata.json`` of a bundle, by default of the one that contains the weights; None without a bundle."""
    return metadata_beside(weights) if bundle is None else read_object(Path(bundle) / METADATA)


def _header(info: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, str]:
    bundle = {"bundle": metadata.get("name"), "bundle_version": metadata.get("version")}
    return {
        **info_header(info),
        **{key: str(value) for key, value in bundle.items() if value},
        "medfusion_monai": medfusion_monai.__version__,
    }
