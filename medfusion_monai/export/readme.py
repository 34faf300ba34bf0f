"""The README of a bundle that is shared: how to install it, and what its weights are."""

from __future__ import annotations

from collections.abc import Sequence

import medfusion_monai
from medfusion_monai.export.card import CardFacts, network_rows, sample_command, sample_lines, training_data
from medfusion_monai.report.page_parts import Block, Column, Commands, Document, Group, Section, Table
from medfusion_monai.report.render import as_markdown
from medfusion_monai.report.tables import plain

INSTALL, WEIGHTS = "Install", "Weights"
"""Sections of a bundle's README that are replaced in the shared copy."""

REQUIREMENTS = "requirements.txt"
NO_WEIGHTS = (
    "None are distributed with this copy. Training writes models/autoencoder.pt after phase one and models/model.pt "
    "after phase two, plain state dicts, and models/model.json, which describes them."
)
TO_COMPLETE = (
    "To be completed before sharing, in the section on training data: whose images these weights were trained on, and "
    "with whose permission. No file records this."
)


def shipped_readme(text: str, name: str, facts: CardFacts | None, fetched: Sequence[str] = ()) -> str:
    """Return the README of a bundle that contains the package, and weights if there are facts about them.

    Args:
        text: the bundle's own; its sections ``Install`` and ``Weights`` are replaced.
        name: of the bundle's folder.
        facts: about the weights; None without weights.
        fetched: weights files that are not in the bundle and have to be fetched first.
    """
    text = _replace(text, Section(INSTALL, _install(name)))
    weights: list[Block] = [NO_WEIGHTS] if facts is None else _weights(name, facts, fetched)
    return _replace(text, Section(WEIGHTS, weights))


def has_section(text: str, title: str) -> bool:
    """Return whether a Markdown text has a section of the second level."""
    return f"## {title}" in text.splitlines()


def _install(name: str) -> list[Block]:
    version = medfusion_monai.__version__
    command = f"PYTHONPATH={name} python -m monai.bundle run training --config_file {name}/configs/train.yaml"
    return [
        f"This bundle contains the package that its configs use, medfusion_monai {version}. Only the package's "
        "requirements have to be installed, with Python 3.10 or newer:",
        Commands("In the folder of this bundle", [f"python -m pip install -r {REQUIREMENTS}"]),
        "Run the commands below in the folder of this bundle. From another folder, put the bundle on Python's path "
        "and give the path of the config:",
        Commands("From the folder that contains this bundle", [command]),
        "The medfusion command, which prepares data and audits models, comes with the wheel, which also installs all "
        "requirements. To build the wheel, run make bundles in a clone of the project.",
        Commands("Or install the wheel", [f"pip install medfusion_monai-{version}-py3-none-any.whl"]),
    ]


def _weights(name: str, facts: CardFacts, fetched: Sequence[str]) -> list[Block]:
    label = facts.info["class_names"][-1]
    columns, rows = [Column("Setting"), Column("Value")], network_rows(facts.info, facts.parameters)
    fetch = f"python -m monai.bundle download_large_files --bundle_path {name}"
    large = Commands(f"Fetch {', '.join(fetched)} first, from the folder that contains this bundle", [fetch])
    elsewhere = f"PYTHONPATH={name} {sample_command(label, bundle=f'{name}/')}"
    images = str((facts.metadata or {}).get("image_classes", ""))
    return [
        "The weights record their own networks, classes, image size and sampler (models/model.json), so none of these "
        "need to be given.",
        *([large] if fetched else []),
        Commands("Sample, in the folder of this bundle", [sample_command(label)]),
        Commands("Sample, from the folder that contains this bundle", [elsewhere]),
        Commands("Sample in Python, in the folder of this bundle", sample_lines(label, ".")),
        *training_data(facts.info, images, TO_COMPLETE),
        Table("Networks, sampler and training", columns, [Group("", rows)], []),
    ]


def _replace(text: str, section: Section) -> str:
    """Return a Markdown text with the section of the second level that has this title replaced."""
    heading = f"## {plain(section.title)}"
    lines = text.splitlines()
    start = lines.index(heading)
    following = [index for index, line in enumerate(lines) if index > start and line.startswith("## ")]
    written = as_markdown(Document("", [], [], [section])).splitlines()
    inner = written[written.index(heading) :]
    rest = lines[following[0] :] if following else []
    return "\n".join([*lines[:start], *inner, *([""] if rest else []), *rest]) + "\n"
