"""The model card of exported weights, written from what is known of them and nothing else."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import medfusion_monai
from medfusion_monai.evaluation.metrics.fidelity import fidelity_columns
from medfusion_monai.export.metadata import image_text, metadata_of
from medfusion_monai.export.public import public_info
from medfusion_monai.model import Model
from medfusion_monai.report.page_parts import Block, Callout, Cell, Column, Commands, Document, Group, Section, Table
from medfusion_monai.report.read_back import measured_weights
from medfusion_monai.report.render import as_markdown
from medfusion_monai.report.sections import document
from medfusion_monai.report.tables import plain
from medfusion_monai.weights.model_info import PLACES, found_at

MEASURED = ("features", "fidelity", "reconstructions", "steering")
"""Parts of a report that go into the card: figures, no pictures, commands, or names of data sets."""

PRIVATE = ("Closest pairs",)
"""Sections of an audit that stay with the hospital: they are about single images."""

LIMITS = (
    "A generative model can reproduce training images, above all if it was trained on few: compare samples with the "
    "training images before sharing samples or weights. Labels are only as good as those of the training images. "
    "Images of another size than that of the training look worse."
)
TO_COMPLETE = (
    "No file records whose images these weights were trained on, or under which permission: whoever shares them "
    "completes this section. The checksums do not cover this card, so it can be edited."
)
LICENCE = (
    "The code is under Apache-2.0. The terms of the weights follow from those of the training images: whoever shares "
    "the weights states both."
)
NOT_MEASURED = "Not measured: no report of an evaluation was given when these weights were exported."
NOT_AUDITED = (
    "Not audited: no audit for memorised training images was given when these weights were exported. Treat them as "
    "patient data until there is one."
)
UNBOUND = (
    "The file that was given does not say which weights it is about: whoever exported these vouches that it is about "
    "them."
)
NO_BUNDLE = (
    "These weights were exported without a bundle, so this card has no description, intended use or references of one."
)
HOW_TO_USE = (
    "FOLDER is the folder of this card. The weights say which networks, classes, sizes and sampler are theirs, so "
    "nothing of it has to be given. The wheel is one of the files that make bundles builds in a clone of the project."
)
SHOWN = ("class_names", "image_size", "image_channels")
"""Names of ``PLACES`` that the section on training data shows."""


class CardFacts(NamedTuple):
    """What a card is written from.

    Attributes:
        metadata: ``metadata.json`` of the bundle, or None where there is none.
        info: what the weights say about themselves, as in ``model.json``.
        parameters: number of weights of each network, by name.
        report: what ``report.json`` of an evaluation holds.
        audit: what ``audit.json`` holds.
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
        metadata: of its bundle, in whatever classes and sizes; None where there is none.
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


def model_card(facts: CardFacts) -> str:
    """Return the card as Markdown; every text is escaped, so that it reads as it is.

    Args:
        facts: what is known.

    Raises:
        ValueError: for a report or an audit that is of another form.
    """
    metadata = facts.metadata or {}
    summary = [str(metadata[key]) for key in ("description", "task") if metadata.get(key)]
    sections = [
        Section("Use", _use(facts)),
        Section("Intended use", [str(metadata.get("intended_use") or "None is stated.")]),
        Section("Limits", [LIMITS]),
        Section("Training data", training_data(facts.info, str(metadata.get("image_classes") or ""), TO_COMPLETE)),
        Section("Metrics", _readable("report", _metrics, facts.report)),
        Section("Privacy audit", _readable("audit", _audit, facts.audit)),
        Section("Networks", [_networks(facts)]),
        Section("References", [str(text) for text in metadata.get("references") or ["None is named."]]),
        Section("Licence", [LICENCE]),
    ]
    title = f"{plain(metadata.get('name') or 'Medfusion')}: weights"
    return as_markdown(Document(title, [], summary or [NO_BUNDLE], sections))


def sample_command(label: str, more: str = "", bundle: str = "") -> str:
    """Return the line of a shell that samples a class.

    Args:
        label: name of the class.
        more: further arguments.
        bundle: folder of the bundle with a slash at its end; empty where it is the working directory.
    """
    words = ["python -m monai.bundle run inference --config_file", f"{bundle}configs/inference.yaml", more]
    return " ".join([*filter(None, words), "--label", _in_shell(plain(label)), "--num_samples 64"])


def sample_lines(label: str, place: str) -> list[str]:
    """Return the lines of Python that sample a class of the model at a place."""
    text = json.dumps(plain(label), ensure_ascii=False)
    return ["import medfusion_monai as mf", f'images = mf.load("{place}").sample({text}, n=4)']


def training_data(info: Mapping[str, Any], images: str, to_complete: str) -> list[Block]:
    """Return what is known of the images that a model was trained on.

    Args:
        info: what the weights say about themselves.
        images: what metadata says about their form; empty for what the weights say.
        to_complete: a sentence about what no file says.
    """
    names, form = info["class_names"], info["image"]
    shares = info.get("class_shares") or [None] * len(names)
    rows = [
        [Cell(str(index)), Cell(plain(name)), Cell("not known" if share is None else f"{share:.1%}")]
        for index, (name, share) in enumerate(zip(names, shares, strict=False))
    ]
    columns = [Column("Label"), Column("Class"), Column("Share of the training images", kind="number")]
    count = (info.get("training") or {}).get("image_count")
    trained_on = "Number of training images: " + ("not known." if count is None else f"{count:,}.")
    form_text = images or image_text("", "images", form["channels"], form["size"])
    return [to_complete, f"{trained_on} Form: {plain(form_text)}.", Table("Classes", columns, [Group("", rows)], [])]


def network_rows(info: Mapping[str, Any], parameters: Mapping[str, int]) -> list[list[Cell]]:
    """Return rows of a table about networks, noise, sampler and training: what, and its value."""
    rows: list[tuple[str, Any]] = [(f"weights of {name}", f"{count:,}") for name, count in parameters.items()]
    rows += [(f"class of {name}", part.get("type")) for name, part in (info.get("networks") or {}).items()]
    rows += [(name, found_at(info, name)) for name in PLACES if name not in SHOWN]
    rows += list((info.get("sampler") or {}).items())
    training = info.get("training") or {}
    rows += [("steps of phase two", training.get("steps")), ("images per step", training.get("images_per_step"))]
    known = [[Cell(name), Cell(plain(_as_yaml(value)))] for name, value in rows if value is not None]
    return [*known, [Cell("trained by medfusion_monai"), Cell(plain(info.get("version") or "not known"))]]


def _use(facts: CardFacts) -> list[Block]:
    label, metadata = facts.info["class_names"][-1], facts.metadata or {}
    bundle = f"Weights for the bundle {plain(metadata.get('name'))}, version {plain(metadata.get('version'))}. "
    return [
        f"{bundle if metadata else ''}{HOW_TO_USE}",
        Commands(
            "Check the files, install, sample in the folder of a bundle",
            [
                "(cd FOLDER && sha256sum --check checksums.sha256)",
                f"pip install medfusion_monai-{medfusion_monai.__version__}-py3-none-any.whl",
                sample_command(label, "--model_file FOLDER/model.safetensors"),
            ],
        ),
        Commands("Or sample in Python, without a bundle", sample_lines(label, "FOLDER")),
    ]


def _readable(
    name: str, render: Callable[[Mapping[str, Any] | None], list[Block]], measured: Mapping[str, Any] | None
) -> list[Block]:
    try:
        return render(measured)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"the {name} for the card is of another form ({type(error).__name__}: {error}): give the {name}.json that "
            "this version of medfusion writes"
        ) from error


def _metrics(report: Mapping[str, Any] | None) -> list[Block]:
    if report is None:
        return [NOT_MEASURED]
    shown = {key: report[key] for key in MEASURED if key in report}
    found = document({"title": "", "sets": [], "warnings": report.get("warnings"), **shown}, fidelity_columns())
    blocks = _blocks(found, report)
    return blocks if found.sections else [NOT_MEASURED]


def _audit(audit: Mapping[str, Any] | None) -> list[Block]:
    if audit is None:
        return [Callout(NOT_AUDITED)]
    found = document({"title": "", "sets": [], "warnings": audit.get("warnings"), "audit": audit["audit"]})
    return _blocks(found._replace(sections=[part for part in found.sections if part.title not in PRIVATE]), audit)


def _blocks(found: Document, measured: Mapping[str, Any]) -> list[Block]:
    """Return warnings, sentences, tables and callouts of a report, without headings, pictures and commands."""
    unbound: list[Block] = [] if measured_weights(measured) else [Callout(UNBOUND)]
    parts = [block for section in found.sections for block in section.blocks]
    kept = [block for block in parts if isinstance(block, str | Callout | Table)]
    return [*unbound, *map(Callout, found.warnings), *found.summary, *kept]


def _networks(facts: CardFacts) -> Table:
    rows = network_rows(facts.info, facts.parameters)
    return Table(
        "Weights are averaged over the training, in float32", [Column("What"), Column("Value")], [Group("", rows)], []
    )


def _in_shell(text: str) -> str:
    """Quote a word for a shell, where it can be by double quotes, which read better around single ones."""
    return f'"{text}"' if "'" in text and not set(text) & set('"$`\\!') else shlex.quote(text)


def _as_yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
