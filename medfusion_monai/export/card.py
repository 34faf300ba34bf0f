"""The model card of exported weights, written only from what is recorded about them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import medfusion_monai
from medfusion_monai.evaluation.metrics.fidelity import fidelity_columns
from medfusion_monai.export.metadata import image_text, metadata_of
from medfusion_monai.export.public import public_info
from medfusion_monai.model import Model
from medfusion_monai.report.audit_sections import conclusions
from medfusion_monai.report.page_parts import Block, Callout, Cell, Column, Commands, Document, Group, Section, Table
from medfusion_monai.report.read_back import measured_weights
from medfusion_monai.report.render import as_markdown
from medfusion_monai.report.sections import document
from medfusion_monai.report.tables import plain
from medfusion_monai.weights.model_info import DIFFUSION, FEW_STEPS, PLACES, found_at, kind_of

Result = TypeVar("Result")

MEASURED = ("features", "fidelity", "reconstructions", "steering")
"""Parts of a report that go into the card: figures, but no pictures, commands or names of data sets."""

PRIVATE = ("Closest pairs",)
"""Sections of an audit that are left out because they are about single images."""

LIMITS = (
    "Generated images are synthetic: anatomy and findings in them can be wrong, and an image need not show its class. "
    "The model can nevertheless reproduce training images, above all if it was trained on few: audit it before sharing "
    "samples or weights. Labels are only as good as those of the training images. Images of another size than in "
    "training look worse."
)
TO_COMPLETE = (
    "To be completed before sharing: whose images these weights were trained on, and with whose permission. No file "
    "records this. The checksums do not cover this card, so it can be edited."
)
LICENCE = (
    "The code is licensed under Apache-2.0. The terms for the weights depend on those of the training images: whoever "
    "shares the weights states both."
)
NOT_MEASURED = "Not measured: these weights were exported without an evaluation report."
NOT_AUDITED = (
    "Not audited: these weights were exported without an audit for memorised training images. Treat them as patient "
    "data until they have been audited."
)
UNBOUND = (
    "The results below do not record which weights they were measured on: whoever exported these weights vouches for "
    "the match."
)
NO_BUNDLE = "These weights were exported without a bundle: this card has no description, intended use or references."
HOW_TO_USE = (
    "FOLDER is the folder of this card. The weights record their own networks, classes, image size and sampler, so "
    "none of these need to be given. To build the wheel, run make bundles in a clone of the project."
)
SHOWN = ("class_names", "image_size", "image_channels")
"""Names of ``PLACES`` that are shown under training data instead."""


class CardFacts(NamedTuple):
    """The content of a card.

    Attributes:
        metadata: ``metadata.json`` of the bundle, or None without a bundle.
        info: description of the weights, as in ``model.json``.
        parameters: number of parameters of each network, by name.
        report: content of an evaluation's ``report.json``.
        audit: content of ``audit.json``.
    """

    metadata: Mapping[str, Any] | None
    info: Mapping[str, Any]
    parameters: Mapping[str, int]
    report: Mapping[str, Any] | None = None
    audit: Mapping[str, Any] | None = None


def facts_of(
    model: Model,
    metadata: Mapping[str, Any] | None,
    report: Mapping[str, Any] | None = None,
    audit: Mapping[str, Any] | None = None,
) -> CardFacts:
    """Return the facts about a model.

    Args:
        model: with its networks.
        metadata: of its bundle, which may be about other classes and sizes; None without a bundle.
        report: of an evaluation of the model.
        audit: of the model.
    """
    parts = model.network.named_children()
    return CardFacts(
        metadata=None if metadata is None else metadata_of(metadata, model),
        info=public_info(model),
        parameters={name: sum(weight.numel() for weight in part.parameters()) for name, part in parts},
        report=report,
        audit=audit,
    )


def model_card(facts: CardFacts, use: Callable[[CardFacts], list[Block]] | None = None) -> str:
    """Return the card as Markdown, with all texts escaped.

    Args:
        facts: its content.
        use: returns its section about sampling; None for that of ``model.safetensors``.

    Raises:
        ValueError: if the report or the audit has an unexpected form.
    """
    metadata = facts.metadata or {}
    summary = [str(metadata[key]) for key in ("description", "task") if metadata.get(key)]
    sections = [
        Section("Use", (use or _use)(facts)),
        Section("Intended use", [str(metadata.get("intended_use") or "Not stated.")]),
        Section("Limits", [LIMITS]),
        Section("Training data", training_data(facts.info, str(metadata.get("image_classes") or ""), TO_COMPLETE)),
        Section("Metrics", readable("report", _metrics, facts.report)),
        Section("Privacy audit", readable("audit", _audit, facts.audit)),
        Section("Networks", [_networks(facts)]),
        Section("References", [str(text) for text in metadata.get("references") or ["None given."]]),
        Section("Licence", [LICENCE]),
    ]
    title = f"{plain(metadata.get('name') or 'Medfusion')}: weights"
    return as_markdown(Document(title, [], summary or [NO_BUNDLE], sections))


def sample_command(label: str, more: str = "", bundle: str = "") -> str:
    """Return the shell command that samples a class.

    Args:
        label: name of the class.
        more: further arguments.
        bundle: folder of the bundle with a trailing slash; empty for the working directory.
    """
    words = ["python -m monai.bundle run inference --config_file", f"{bundle}configs/inference.yaml", more]
    return " ".join([*filter(None, words), "--label", _in_shell(plain(label)), "--num_samples 64"])


def sample_lines(label: str, place: str) -> list[str]:
    """Return the Python lines that sample a class of the model at a path."""
    text = json.dumps(plain(label), ensure_ascii=False)
    return ["import medfusion_monai as mf", f'images = mf.load("{place}").sample({text}, n=4)']


def training_data(info: Mapping[str, Any], images: str, to_complete: str) -> list[Block]:
    """Return what is known about the images that a model was trained on.

    Args:
        info: description of the weights.
        images: form of the images according to the metadata; empty for the form that the weights record.
        to_complete: a sentence about what no file records.
    """
    names, form = info["class_names"], info["image"]
    shares = info.get("class_shares") or [None] * len(names)
    rows = [
        [Cell(str(index)), Cell(plain(name)), Cell("unknown" if share is None else f"{share:.1%}")]
        for index, (name, share) in enumerate(zip(names, shares, strict=False))
    ]
    columns = [Column("Label"), Column("Class"), Column("Share of the training images", kind="number")]
    count = (info.get("training") or {}).get("image_count")
    trained_on = "Number of training images: " + ("unknown." if count is None else f"{count:,}.")
    parts = {"started_from": "The training started from other weights", "decoder": "The decoder", "guide": "The guide"}
    for name, words in parts.items():
        earlier = (info.get("training") or {}).get(name)
        if earlier:
            number = earlier.get("image_count")
            trained_on += (
                f" {words} (SHA-256 {plain(earlier.get('weights_sha256'))}), trained on "
                f"{'an unknown number of' if number is None else f'{number:,}'} images."
            )
    form_text = images or image_text("", "images", form["channels"], form["size"])
    return [to_complete, f"{trained_on} Images: {plain(form_text)}.", Table("Classes", columns, [Group("", rows)], [])]


def network_rows(info: Mapping[str, Any], parameters: Mapping[str, int]) -> list[list[Cell]]:
    """Return the rows of a table of settings of networks, noise, sampler and training."""
    rows: list[tuple[str, Any]] = [(f"parameters of {name}", f"{count:,}") for name, count in parameters.items()]
    rows += [(f"type of {name}", part.get("type")) for name, part in (info.get("networks") or {}).items()]
    rows += [(name, found_at(info, name)) for name in PLACES if name not in SHOWN]
    rows += list((info.get("sampler") or {}).items())
    training = info.get("training") or {}
    phase = {DIFFUSION: "phase two", FEW_STEPS: "phase three"}.get(kind_of(info), "the training")
    rows += [(f"steps of {phase}", training.get("steps")), ("images per step", training.get("images_per_step"))]
    known = [[Cell(name), Cell(plain(_as_yaml(value)))] for name, value in rows if value is not None]
    return [*known, [Cell("trained with medfusion_monai"), Cell(plain(info.get("version") or "unknown"))]]


def _use(facts: CardFacts) -> list[Block]:
    label, metadata = facts.info["class_names"][-1], facts.metadata or {}
    bundle = f"Weights for the bundle {plain(metadata.get('name'))}, version {plain(metadata.get('version'))}. "
    return [
        f"{bundle if metadata else ''}{HOW_TO_USE}",
        Commands(
            "Check the files, install, and sample in the folder of a bundle",
            [
                "(cd FOLDER && sha256sum --check checksums.sha256)",
                f"pip install medfusion_monai-{medfusion_monai.__version__}-py3-none-any.whl",
                sample_command(label, "--model_file FOLDER/model.safetensors"),
            ],
        ),
        Commands("Or sample in Python, without a bundle", sample_lines(label, "FOLDER")),
    ]


def readable(name: str, read: Callable[[Any], Result], measured: Mapping[str, Any] | None) -> Result:
    """Return what a function makes of a report or an audit.

    Args:
        name: ``report`` or ``audit``, for the error text.
        read: the function.
        measured: its argument; None for none.

    Raises:
        ValueError: if the report or the audit has an unexpected form.
    """
    try:
        return read(measured)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"the {name} for the card has an unexpected form ({type(error).__name__}: {error}): give a {name}.json "
            "written by this version of medfusion"
        ) from error


def audit_blocks(audit: Mapping[str, Any]) -> list[Block]:
    """Return what an audit concludes, its figures and limits, without what is about single images."""
    found = document({"title": "", "sets": [], "warnings": audit.get("warnings"), "audit": audit["audit"]})
    public = [part for part in found.sections if part.title not in PRIVATE]
    return shown_blocks(found._replace(sections=public, summary=conclusions(audit["audit"])))


def shown_blocks(found: Document) -> list[Block]:
    """Return the warnings, sentences, tables and callouts of a report, without headings, pictures and commands."""
    parts = [block for section in found.sections for block in section.blocks]
    kept = [block for block in parts if isinstance(block, str | Callout | Table)]
    return [*map(Callout, found.warnings), *found.summary, *kept]


def _metrics(report: Mapping[str, Any] | None) -> list[Block]:
    if report is None:
        return [NOT_MEASURED]
    shown = {key: report[key] for key in MEASURED if key in report}
    found = document({"title": "", "sets": [], "warnings": report.get("warnings"), **shown}, fidelity_columns())
    blocks = [*_unbound(report), *shown_blocks(found)]
    return blocks if found.sections else [NOT_MEASURED]


def _audit(audit: Mapping[str, Any] | None) -> list[Block]:
    return [Callout(NOT_AUDITED)] if audit is None else [*_unbound(audit), *audit_blocks(audit)]


def _unbound(measured: Mapping[str, Any]) -> list[Block]:
    return [] if measured_weights(measured) else [Callout(UNBOUND)]


def _networks(facts: CardFacts) -> Table:
    rows = network_rows(facts.info, facts.parameters)
    return Table("Networks, sampler and training", [Column("Setting"), Column("Value")], [Group("", rows)], [])


def _in_shell(text: str) -> str:
    """Quote a word for a shell, by double quotes around single ones where possible, as they read better."""
    return f'"{text}"' if "'" in text and not set(text) & set('"$`\\!') else shlex.quote(text)


def _as_yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
