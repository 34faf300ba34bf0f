"""Export of a trained model as a folder of diffusers, with a model card and checksums."""

from __future__ import annotations

import importlib.util
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import medfusion_monai
from medfusion_monai.export.card import CardFacts, model_card
from medfusion_monai.export.card_head import card_head
from medfusion_monai.export.public import open_model
from medfusion_monai.export.safetensors_folder import measured_facts
from medfusion_monai.export.shared_folder import CARD, refuse_other_files, written_whole
from medfusion_monai.model import Model
from medfusion_monai.networks.described import DescriptionError
from medfusion_monai.networks.diffusers_autoencoder import CONFIG, WEIGHTS
from medfusion_monai.report.page_parts import Block, Commands
from medfusion_monai.report.tables import plain
from medfusion_monai.weights.checksums import CHECKSUMS, checksums_text
from medfusion_monai.weights.guidance_model import SETTING, without_guide

logger = logging.getLogger(__name__)

PIPELINE = "pipeline.py"
"""The file with the pipeline's code, which users name as ``custom_pipeline``."""
NAMES = (
    "model_index.json",
    PIPELINE,
    "scheduler/scheduler_config.json",
    *(f"{part}/{name}" for part in ("unet", "vae") for name in (CONFIG, WEIGHTS)),
    CARD,
    CHECKSUMS,
)
HOW_TO_USE = (
    "FOLDER is the folder of this card; from a hub, fetch it first (hf download NAMESPACE/NAME --local-dir FOLDER), "
    "since diffusers loads components of other packages from folders alone. The pipeline samples with the package "
    "medfusion_monai: build its wheel by make bundles in a clone of the project, since no package index has it. "
    f"trust_remote_code=True lets diffusers run {PIPELINE}, which only imports the pipeline from the package; "
    "read it first."
)


def export_pipeline(
    model_file: str | Path,
    output: str | Path,
    bundle: str | Path | None = None,
    report: str | Path | None = None,
    audit: str | Path | None = None,
    license_id: str | None = None,
) -> list[Path]:
    """Write a folder that ``DiffusionPipeline.from_pretrained`` of diffusers loads, with a card and checksums.

    The same model, reports and version of diffusers give the same bytes, and no path is in them. A guide of the weights
    does not fit into a pipeline, which then samples without guidance; the log says so.

    Args:
        model_file: weights, or a folder or bundle that contains them.
        output: folder of the files, with no others in it.
        bundle: folder of the bundle that the card describes; None for the one whose ``models`` contains the weights.
        report: ``report.json`` of ``run evaluating``, for the card.
        audit: ``audit.json`` of ``medfusion audit``, for the card.
        license_id: the hub's identifier of the terms for the weights; None for unknown ones.

    Returns:
        The files.

    Raises:
        ValueError: if diffusers is not installed; for weights that cannot be loaded or whose networks a description
            cannot build; for reports of other weights, other files in ``output``, and files that cannot be read or
            written.
    """
    head = card_head("diffusers", license_id)
    if importlib.util.find_spec("diffusers") is None:
        raise ValueError("export to diffusers needs diffusers, not installed here: pip install diffusers")
    refuse_other_files(output, NAMES)
    model = open_model(model_file)
    facts = measured_facts(model, bundle, report, audit)
    if facts.info["sampler"].get(SETTING) is not None:
        logger.warning(
            "a pipeline holds no guide: it samples without guidance, and its images are not those of a report of %s",
            model.path,
        )
        facts = facts._replace(info={**facts.info, "sampler": without_guide(facts.info["sampler"])})
    card = model_card(facts, pipeline_use)
    pipeline = _pipeline(model, facts.info)
    with written_whole(output, NAMES) as folder:
        pipeline.save_pretrained(folder)
        (folder / CARD).write_text(head + card, encoding="utf-8")
        listed = [folder / name for name in NAMES if name not in (CARD, CHECKSUMS)]
        (folder / CHECKSUMS).write_text(checksums_text(listed, folder), encoding="utf-8")
    return [Path(output) / name for name in NAMES]


def pipeline_use(facts: CardFacts) -> list[Block]:
    """Return the section of a card about sampling with diffusers."""
    label = json.dumps(plain(facts.info["class_names"][-1]), ensure_ascii=False)
    place = f'"FOLDER", custom_pipeline="FOLDER/{PIPELINE}", trust_remote_code=True'
    sample = f"images = pipeline({label}, n=4, seed=0).images"
    return [
        HOW_TO_USE,
        Commands(
            "Check the files and install",
            [
                f"(cd FOLDER && sha256sum --check {CHECKSUMS})",
                f"pip install 'medfusion_monai-{medfusion_monai.__version__}-py3-none-any.whl[diffusers]'",
            ],
        ),
        Commands(
            "Sample with diffusers",
            [
                "from diffusers import DiffusionPipeline",
                f"pipeline = DiffusionPipeline.from_pretrained({place})",
                sample,
            ],
        ),
        Commands(
            "The same without running a file of this folder",
            [
                "from medfusion_monai.export.diffusers_pipeline import MedfusionPipeline",
                'pipeline = MedfusionPipeline.from_pretrained("FOLDER")',
                sample,
            ],
        ),
    ]


def _pipeline(model: Model, info: Mapping[str, Any]) -> Any:
    """Return the pipeline of a model, described by known keys alone."""
    from medfusion_monai.export.diffusers_parts import DescribedModel, DescribedScheduler
    from medfusion_monai.export.diffusers_pipeline import MedfusionPipeline

    parts = {}
    for name, description in info["networks"].items():
        try:
            parts[name] = DescribedModel(description)
        except DescriptionError as error:
            raise ValueError(f"{model.path} cannot be exported to diffusers: {error}") from error
        parts[name].network = getattr(model.network, name)
    scheduler = DescribedScheduler(info["schedule"], info["sampler"])
    rest = {name: info[name] for name in info if name not in ("networks", "schedule", "sampler")}
    return MedfusionPipeline(parts["unet"], parts["autoencoder"], scheduler, rest)
