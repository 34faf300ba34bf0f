"""The README of a bundle that is given to others: how it is installed and what its weights are."""

from __future__ import annotations

from collections.abc import Sequence

import medfusion_monai
from medfusion_monai.export.card import CardFacts, network_rows, sample_command, sample_lines, training_data
from medfusion_monai.report.page_parts import Block, Column, Commands, Document, Group, Section, Table
from medfusion_monai.report.render import as_markdown
from medfusion_monai.report.tables import plain

INSTALL, WEIGHTS = "Install", "Weights"
"""Sections of a bundle's README that are written anew for whom it is given to."""

REQUIREMENTS = "requirements.txt"
TO_COMPLETE = (
    "No file records whose images these weights were trained on, or under which permission: whoever shares them says "
    "so in the section on training data."
)


def shipped_readme(text: str, name: str, facts: CardFacts | None, fetched: Sequence[str] = ()) -> str:
    """Return the README of a bundle that holds the package, and weights if there are facts about them.

    Args:
        text: the bundle's own; its sections ``Install`` and, where there are weights, ``Weights`` are replaced.
        name: of the bundle's folder.
        facts: about the weights; None where there are none.
        fetched: files of the weights that are not in the bundle and have to be fetched first.
    """
    text = _replace(text, Section(INSTALL, _install(name)))
    return text if facts is None else _replace(text, Section(WEIGHTS, _weights(name, facts, fetched)))


def has_section(text: str, title: str) -> bool:
    """Whether a Markdown text has a section of the second level."""
    return f"## {title}" in text.splitlines()


def _install(name: str) -> list[Block]:
    version = medfusion_monai.__version__
    command = f"PYTHONPATH={name} python -m monai.bundle run training --config_file {name}/configs/train.yaml"
    return [
        f"The folder medfusion_monai in this bundle is the package that its configs use, version {version}. So only "
        "what the package needs is to be installed, with Python 3.10 or newer:",
        Commands("In the folder of this bundle", [f"python -m pip install -r {REQUIREMENTS}"]),
        "Run the commands below in the folder of this bundle. From another folder, put the bundle on Python's path, "
        "and say where its configs are:",
        Commands("From the folder that holds this bundle", [command]),
        "The medfusion command, which prepares data and audits models, comes with the wheel that make bundles builds "
        "in a clone of the project; the wheel brings all that the package needs:",
        Commands("Or install the wheel", [f"pip install medfusion_monai-{version}-py3-none-any.whl"]),
    ]


def _weights(name: str, facts: CardFacts, fetched: Sequence[str]) -> list[Block]:
    label = facts.info["class_names"][-1]
    columns, rows = [Column("What"), Column("Value")], network_rows(facts.info, facts.parameters)
    fetch = f"python -m monai.bundle download_large_files --bundle_path {name}"
    large = Commands(f"Fetch {', '.join(fetched)} first, from the folder that holds this bundle", [fetch])
    elsewhere = f"PYTHONPATH={name} {sample_command(label, bundle=f'{name}/')}"
    images = str((facts.metadata or {}).get("image_classes", ""))
    return [
        "The weights say which networks, classes, sizes and sampler are theirs (models/model.json), so nothing of it "
        "has to be given.",
        *([large] if fetched else []),
        Commands("Sample, in the folder of this bundle", [sample_command(label)]),
        Commands("Sample, from the folder that holds this bundle", [elsewhere]),
        Commands("Sample in Python, in the folder of this bundle", sample_lines(label, ".")),
        *training_data(facts.info, images, TO_COMPLETE),
        Table("Networks, sampler and training", columns, [Group("", rows)], []),
    ]


def _replace(text: str, section: Section) -> str:
    """Return a Markdown text with a section of the second level in the place of the one of its title."""
    heading = f"## {plain(section.title)}"
    lines = text.splitlines()
    start = lines.index(heading)
    following = [index for index, line in enumerate(lines) if index > start and line.startswith("## ")]
    written = as_markdown(Document("", [], [], [section])).splitlines()
    inner = written[written.index(heading) :]
    rest = lines[following[0] :] if following else []
    return "\n".join([*lines[:start], *inner, *([""] if rest else []), *rest]) + "\n"
