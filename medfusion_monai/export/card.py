"""The model card of exported weights, written from what is known of them and nothing else."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import medfusion_monai
from medfusion_monai.reports.blocks import Block, Callout, Cell, Column, Commands, Document, Group, Section, Table
from medfusion_monai.reports.contents import document
from medfusion_monai.reports.markdown import as_markdown
from medfusion_monai.reports.tables import plain
from medfusion_monai.reports.written import measured_weights

MEASURED = ("features", "fidelity", "reconstructions", "steering")
"""Parts of a report that go into the card: figures, no pictures, commands, or names of data sets."""

PRIVATE = ("Closest pairs",)
"""Sections of an audit that stay with the hospital: they are about single images."""

LIMITS = (
    "A generative model can reproduce training images, above all when it was trained on few: compare samples with the "
    "training images before you share samples or weights. Labels are as good as those that it was trained on. Images "
    "of another size than it was trained with look worse."
)
TO_COMPLETE = (
    "Whose images these weights were trained on, and under which permission, no file says: whoever shares them "
    "completes this section. Checksums leave this card out, so that it can be edited."
)
LICENCE = (
    "The code is under Apache-2.0. The terms of the weights follow from those of the images that they were trained on: "
    "whoever shares them states both."
)
NOT_MEASURED = "Not measured: no report of an evaluation was given when these weights were exported."
NOT_AUDITED = (
    "Not audited: no audit for memorised training images was given when these weights were exported. Treat them as "
    "data of patients until there is one."
)
UNBOUND = "The file that was given does not say which weights it is about: that it is these, the exporter answers for."


class CardFacts(NamedTuple):
    """What a card is written from.

    Attributes:
        metadata: ``metadata.json`` of the bundle.
        info: what the weights were trained with, as in ``model.json``.
        sizes: keys of the configs that say how large the networks are.
        parameters: number of weights of each network, by name.
        overlays: config files that were merged after ``inference.yaml``.
        options: keys that a user of the weights has to give.
        report: what ``report.json`` of an evaluation holds.
        audit: what ``audit.json`` holds.
    """

    metadata: Mapping[str, Any]
    info: Mapping[str, Any]
    sizes: Mapping[str, Any]
    parameters: Mapping[str, int]
    overlays: Sequence[str]
    options: Mapping[str, Any]
    report: Mapping[str, Any] | None = None
    audit: Mapping[str, Any] | None = None


def model_card(facts: CardFacts) -> str:
    """Write the card as Markdown; every text is escaped, so that it reads as it is.

    Args:
        facts: what is known.

    Raises:
        ValueError: for a report or an audit that is of another form.
    """
    metadata = facts.metadata
    summary = [str(metadata[key]) for key in ("description", "task") if metadata.get(key)]
    sections = [
        Section("Use", _use(facts)),
        Section("Intended use", [str(metadata.get("intended_use") or "The bundle states none.")]),
        Section("Limits", [LIMITS]),
        Section("Training data", _training_data(facts)),
        Section("Metrics", _readable("report", _metrics, facts.report)),
        Section("Privacy audit", _readable("audit", _audit, facts.audit)),
        Section("Networks", [_networks(facts)]),
        Section("References", [str(text) for text in metadata.get("references") or ["The bundle names none."]]),
        Section("Licence", [LICENCE]),
    ]
    return as_markdown(Document(f"{plain(metadata.get('name') or 'Medfusion')}: weights", [], summary, sections))


def _use(facts: CardFacts) -> list[Block]:
    configs = [f"configs/{name}" for name in ("inference.yaml", *facts.overlays)]
    files = configs[0] if len(configs) == 1 else str(configs)
    options = [part for key, value in facts.options.items() for part in (f"--{key}", _in_shell(_as_yaml(value)))]
    label = plain(facts.info["class_names"][-1])
    run = ["python -m monai.bundle run inference --config_file", _in_shell(files), *options]
    run += ["--model_file FOLDER/model.safetensors --label", _in_shell(label), "--num_samples 64"]
    return [
        f"Weights for the bundle {plain(facts.metadata.get('name'))}, version {plain(facts.metadata.get('version'))}. "
        "FOLDER is the folder of this card; the last line is run in the folder of the bundle.",
        Commands(
            "Check the files, install, sample",
            [
                "(cd FOLDER && sha256sum --check checksums.sha256)",
                f"pip install medfusion-monai=={medfusion_monai.__version__}",
                " ".join(run),
            ],
        ),
    ]


def _training_data(facts: CardFacts) -> list[Block]:
    info = facts.info
    shares = info.get("class_shares") or [None] * len(info["class_names"])
    rows = [
        [Cell(str(index)), Cell(plain(name)), Cell("not known" if share is None else f"{share:.1%}")]
        for index, (name, share) in enumerate(zip(info["class_names"], shares, strict=False))
    ]
    columns = [Column("Label"), Column("Class"), Column("Share of the training images", kind="number")]
    height, width = info["image_size"]
    return [
        TO_COMPLETE,
        f"Images of {height} x {width} pixels, {plain(facts.metadata.get('image_classes') or '')}.",
        Table("Classes", columns, [Group("", rows)], []),
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
    found = document({"title": "", "sets": [], "warnings": report.get("warnings"), **shown})
    blocks = _blocks(found, report)
    return blocks if found.sections else [NOT_MEASURED]


def _audit(audit: Mapping[str, Any] | None) -> list[Block]:
    if audit is None:
        return [Callout(NOT_AUDITED)]
    found = document({"title": "", "sets": [], "warnings": audit.get("warnings"), "audit": audit["audit"]})
    return _blocks(found._replace(sections=[part for part in found.sections if part.title not in PRIVATE]), audit)


def _blocks(found: Document, measured: Mapping[str, Any]) -> list[Block]:
    """Give warnings, sentences, tables and callouts of a report, without headings, pictures and commands."""
    unbound: list[Block] = [] if measured_weights(measured) else [Callout(UNBOUND)]
    parts = [block for section in found.sections for block in section.blocks]
    told = [block for block in parts if isinstance(block, str | Callout | Table)]
    return [*unbound, *map(Callout, found.warnings), *found.summary, *told]


def _networks(facts: CardFacts) -> Table:
    columns = [Column("What"), Column("Value")]
    rows = [[Cell(f"weights of {name}"), Cell(f"{count:,}")] for name, count in facts.parameters.items()]
    settings = {**facts.sizes, **{key: facts.info[key] for key in ("latent_channels", "prediction_type")}}
    rows += [[Cell(key), Cell(plain(_as_yaml(value)))] for key, value in settings.items()]
    trained = facts.info.get("version")
    rows.append([Cell("trained by medfusion_monai"), Cell(plain(trained) if trained else "not known")])
    return Table("Weights are averaged over the training, in float32", columns, [Group("", rows)], [])


def _in_shell(text: str) -> str:
    """Quote a word for a shell, where it can be by double quotes, which read better around single ones."""
    return f'"{text}"' if "'" in text and not set(text) & set('"$`\\!') else shlex.quote(text)


def _as_yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
