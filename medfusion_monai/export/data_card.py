"""The card of a set of samples, after the scorecard of Zamzmi et al. 2024 (arXiv:2406.11143).

It is written only from what is recorded about them: manifest, refused images, weights, report and audit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from medfusion_monai.evaluation.metrics.fidelity import fidelity_columns
from medfusion_monai.export.card import audit_blocks, readable, shown_blocks, training_data
from medfusion_monai.export.metadata import CHANNELS
from medfusion_monai.export.own_figures import OTHER_IMAGES
from medfusion_monai.report import audit_verdict
from medfusion_monai.report.page_parts import Block, Callout, Cell, Column, Commands, Document, Group, Section, Table
from medfusion_monai.report.render import as_markdown
from medfusion_monai.report.sections import document
from medfusion_monai.report.tables import count_cell, measures_in, plain
from medfusion_monai.sampling.image_formats import FORMATS
from medfusion_monai.sampling.plan import MANIFEST
from medfusion_monai.sampling.refused_copies import REFUSED

DIVERSITY = ("recall", "coverage", "diversity_ms_ssim")
"""Metrics that are about diversity; the others of the table are about fidelity."""
ELSEWHERE = ("copy_guard", "image_size", "output_format", "weights_sha256")
"""Settings of the manifest that are shown in other places than the table of settings."""

TITLES = {"networks": "networks and schedule (digest)", "version": "medfusion_monai"}
"""Of settings whose name does not say what they are."""

ABOUT = (
    "A generative model made these images. Figures on this card were measured on exactly these images and labels, "
    "compared by the checksum of their pixels; what is missing was not measured. The card has the parts of the "
    "scorecard of Zamzmi et al. (arXiv 2406.11143)."
)
NOT_AUDITED = "Not audited for copies of training images: treat these images as patient data until they are."
NOT_MEASURED = "Not measured: the last section has the commands."
NOT_IN_REPORT = "Not measured: the report that was given has no such figures of these images."
NO_MODEL = (
    "Not stated, as the card was written without the weights: medfusion card --model-file adds the number of training "
    "images and the shares of their classes."
)
TO_COMPLETE = (
    "To be completed before sharing: whose images the model was trained on, and with whose permission. No file records "
    "this. Edit the card last: medfusion card writes a new one, and so does an inference that changes the images."
)
NO_GUARD = (
    "No guard was in use: images that come near to a training image were written like others (--refuse_copies_of "
    "refuses them)."
)
LIMITS = (
    "Anatomy and findings in generated images can be wrong, and an image need not show its class, the one that was "
    "requested. Labels are only as good as those of the training images, whose gaps and biases the set inherits. "
    "Figures are about the set, not about single images. Not for diagnosis; what is trained or tested on these images "
    "has to be tested on real ones."
)
LICENCE = (
    "The terms for these images depend on those of the training images and of the weights: whoever shares the images "
    "states them here."
)
OF_A_PACKAGE = (
    "A package does not name the site that made it: whoever passes it on knows whose images the model was trained on, "
    "and with whose permission."
)
TERMS = "The terms for these images are in the file {file}."
COMMANDS = (
    "python -m monai.bundle run evaluating --config_file configs/evaluate.yaml --dataset_dir DATA "
    "--samples_dir SAMPLES --output_dir REPORT",
    "medfusion audit --dataset-dir DATA --samples SAMPLES --model-file MODEL --output AUDIT",
    "medfusion card SAMPLES --model-file MODEL --report REPORT/report.json --audit AUDIT/audit.json",
)


class ClassCount(NamedTuple):
    """Numbers of images of a class: those in the set, and those that the guard refused."""

    label: int
    name: str
    images: int
    refused: int = 0


class DataFacts(NamedTuple):
    """The content of a card.

    Attributes:
        classes: of the images, in label order.
        settings: of all images, as in the manifest.
        channels: of an image.
        checksums: SHA-256 of what the card describes, by name.
        model: known facts of the weights, see ``model_facts``; None without them.
        figures: of a report, see ``own_figures``; None without a report.
        audit: content of ``audit.json``; None without an audit.
        audit_problem: why the audit's figures must not be shown, see ``audit_problem``; None to show them.
        terms: file with the terms for the images, in a package; None in a folder of samples, whose card is completed.
    """

    classes: Sequence[ClassCount]
    settings: Mapping[str, str]
    channels: int
    checksums: Mapping[str, str]
    model: Mapping[str, Any] | None = None
    figures: Mapping[str, Any] | None = None
    audit: Mapping[str, Any] | None = None
    audit_problem: str | None = None
    terms: str | None = None


def data_card(facts: DataFacts) -> str:
    """Return the card as Markdown, with all texts escaped.

    Args:
        facts: its content.

    Raises:
        ValueError: if the report or the audit has an unexpected form.
    """
    names = ", ".join(plain(each.name) for each in facts.classes)
    sections = [
        Section("Images", _images(facts)),
        Section("Source", [_source(facts)]),
        Section("Training images of the model", _training(facts)),
        Section("Fidelity", readable("report", _fidelity, facts.figures)),
        Section("Diversity", readable("report", _diversity, facts.figures)),
        Section("Utility", readable("report", _utility, facts.figures)),
        Section("Privacy", [_guard_text(facts), *readable("audit", lambda audit: _audit(audit, facts), facts.audit)]),
        Section("Limits", [LIMITS]),
        Section("Licence", [TERMS.format(file=facts.terms) if facts.terms else LICENCE]),
        Section("Files and commands", _files(facts)),
    ]
    answer = readable("audit", lambda audit: _answer(audit, facts), facts.audit)
    return as_markdown(Document(f"Synthetic images: {names}", [], [ABOUT], sections, answer))


def problems(facts: DataFacts) -> list[str]:
    """Return why figures that were given are not on the card, as sentences."""
    report = [] if facts.figures is None or facts.figures.get("sets") else [OTHER_IMAGES.format(file="report")]
    return [*report, *filter(None, [facts.audit_problem])]


def _answer(audit: Mapping[str, Any] | None, facts: DataFacts) -> str:
    return NOT_AUDITED if audit is None or facts.audit_problem else audit_verdict.verdict(audit["audit"])


def _images(facts: DataFacts) -> list[Block]:
    settings, guarded = facts.settings, _guard(facts) is not None
    height, _, width = plain(settings.get("image_size", "")).partition("x")
    form = f"{CHANNELS.get(facts.channels, f'{facts.channels} channels')}, {height} pixels high, {width} wide"
    name = settings.get("output_format", "unknown")
    file_format = FORMATS[name].title or name if name in FORMATS else name
    total = sum(each.images for each in facts.classes)
    columns = [Column("Label"), Column("Class"), Column("Images", kind="number")]
    columns += [Column("Refused as copies", kind="number")] if guarded else []
    rows = [
        [
            Cell(str(each.label)),
            Cell(plain(each.name)),
            count_cell(each.images),
            *([count_cell(each.refused)] if guarded else []),
        ]
        for each in facts.classes
    ]
    text = (
        f"Number of images: {total:,}. Form: {form}; files: {plain(file_format)}, each marked as synthetic. {MANIFEST} "
        "lists file, label and seed of each."
    )
    return [text, Table("Images by class", columns, [Group("", rows)], [])]


def _source(facts: DataFacts) -> Table:
    model, settings = facts.model or {}, facts.settings
    rows = [("bundle of the weights", model.get("bundle")), ("SHA-256 of the weights", settings.get("weights_sha256"))]
    rows += [(TITLES.get(name, name), value) for name, value in settings.items() if name not in ELSEWHERE]
    rows += [("seeds", f"one per image, in {MANIFEST}: --image_seeds samples an image again")]
    cells = [[Cell(plain(name)), Cell(plain(value))] for name, value in rows if value not in (None, "", "None")]
    return Table("Model, sampler and seeds", [Column("Setting"), Column("Value")], [Group("", cells)], [])


def _training(facts: DataFacts) -> list[Block]:
    unknown = OF_A_PACKAGE if facts.terms else TO_COMPLETE
    return [unknown, NO_MODEL] if facts.model is None else training_data(facts.model, "", unknown)


def _fidelity(figures: Mapping[str, Any] | None) -> list[Block]:
    if figures is None:
        return [NOT_MEASURED]
    blocks: list[Block] = [*map(Callout, map(plain, figures.get("warnings") or []))]
    blocks += _of_others(figures) or _table(figures, is_diversity=False) or [NOT_IN_REPORT]
    if figures.get("reconstructions"):
        parts = {key: figures[key] for key in ("reconstructions", "reconstructions_note")}
        blocks += shown_blocks(document({"title": "", "sets": [], **parts}))
    return blocks


def _diversity(figures: Mapping[str, Any] | None) -> list[Block]:
    if figures is None:
        return [NOT_MEASURED]
    above = _table(figures, is_diversity=False)  # which explains the features
    own = [block for block in _table(figures, is_diversity=True) if block not in above]
    return _of_others(figures) or own or [NOT_IN_REPORT]


def _utility(figures: Mapping[str, Any] | None) -> list[Block]:
    if figures is None:
        return [NOT_MEASURED]
    found = document({"title": "", "sets": [], "steering": figures.get("steering")})
    return _of_others(figures) or shown_blocks(found) or [NOT_IN_REPORT]


def _of_others(figures: Mapping[str, Any]) -> list[Block]:
    return [] if figures.get("sets") else [Callout(OTHER_IMAGES.format(file="report"))]


def _table(figures: Mapping[str, Any], is_diversity: bool) -> list[Block]:
    """Return the table of the metrics of one kind, with what explains it; nothing if they were not measured."""
    measures = [measure for measure in fidelity_columns() if (measure.key in DIVERSITY) == is_diversity]
    if not measures_in(figures.get("fidelity") or [], measures):
        return []
    scale = [text for text in figures.get("scale") or [] if ("MS-SSIM" in text) == is_diversity]
    parts = {"features": figures.get("features"), "fidelity": figures["fidelity"], "scale": scale}
    return shown_blocks(document({"title": "", "sets": [], **parts}, measures))


def _guard_text(facts: DataFacts) -> str:
    guard = _guard(facts)
    if guard is None:
        return NO_GUARD
    refused = sum(each.refused for each in facts.classes)
    listed = f", and {REFUSED} lists them" if refused and not facts.terms else ""
    return (
        f"A guard (SHA-256 {plain(guard)}) judged every image before it was written and refused {refused:,} as copies "
        f"of training images: they are not in the set{listed}."
    )


def _audit(audit: Mapping[str, Any] | None, facts: DataFacts) -> list[Block]:
    if audit is None:
        return [f"{NOT_AUDITED} The last section has the commands."]
    return [Callout(facts.audit_problem)] if facts.audit_problem else audit_blocks(audit)


def _guard(facts: DataFacts) -> str | None:
    found = facts.settings.get("copy_guard", "none")
    return None if found == "none" else found


def _files(facts: DataFacts) -> list[Block]:
    rows = [[Cell(plain(name)), Cell(value)] for name, value in facts.checksums.items()]
    columns = [Column("File"), Column("Value", kind="code")]
    table = Table("Checksums (SHA-256) of what this card describes", columns, [Group("", rows)], [])
    return [table, Commands("To measure these images and write the card with the figures", list(COMMANDS))]
