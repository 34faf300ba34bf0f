"""The card in a folder of samples: written by inference, and again with the figures by ``medfusion card``."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from medfusion_monai.data.preparing.splits import DataError
from medfusion_monai.data.reading.images import read_image
from medfusion_monai.evaluation.image_form import ImageFacts, content_sha256, inspect_set
from medfusion_monai.evaluation.image_set import ImageSet, open_image_set, read_manifest
from medfusion_monai.export.card import readable
from medfusion_monai.export.data_card import ClassCount, DataFacts, data_card, problems
from medfusion_monai.export.metadata import metadata_beside
from medfusion_monai.export.own_figures import Identity, audit_problem, own_figures
from medfusion_monai.export.public import known_training
from medfusion_monai.model import Model
from medfusion_monai.report.read_back import read_audit, read_measured
from medfusion_monai.runtime.distributed import from_first
from medfusion_monai.runtime.errors import WeightsError
from medfusion_monai.runtime.files import DiskFullError, file_sha256, renamed_when_whole
from medfusion_monai.runtime.locks import take_folders
from medfusion_monai.sampling.manifest import RowList, Rows
from medfusion_monai.sampling.plan import MANIFEST
from medfusion_monai.sampling.refused_copies import REFUSED
from medfusion_monai.sampling.writer import ITEM_COLUMNS
from medfusion_monai.weights.places import missing_weights, weights_at

logger = logging.getLogger(__name__)

CARD = "card.md"


def describe_samples(folder: str | Path, model: Model) -> None:
    """Write the card of the samples in a folder, with what is known right after sampling; for the end of an inference.

    A card of the same images is kept, with its figures and edits. Without images there is nothing to describe.

    Args:
        folder: of the samples.
        model: that they were sampled from.

    Raises:
        ValueError: if the folder cannot be written, or its disk is full.
    """

    def describe() -> None:
        rows = RowList.read(Path(folder) / MANIFEST)
        facts = _facts(Path(folder), rows, model.image_channels, model_facts(model))
        if rows and not _is_card_of(Path(folder) / CARD, facts.checksums):
            _write(Path(folder), facts)

    from_first(describe)


def write_card(
    folder: str | Path,
    model_file: str | Path | None = None,
    report: str | Path | None = None,
    audit: str | Path | None = None,
) -> Path:
    """Write the card of the samples in a folder, in place of an earlier one.

    Figures are shown only if they are of exactly these images and of their weights; otherwise the card says so.

    Args:
        folder: that inference wrote.
        model_file: the weights that the images were sampled from, or a folder or bundle that contains them; None for a
            card without facts about their training.
        report: ``report.json`` of ``run evaluating`` or ``medfusion compare``.
        audit: ``audit.json`` of ``medfusion audit``.

    Returns:
        The card.

    Raises:
        ValueError: for a folder without samples, missing images, other weights, and files that cannot be read or
            written.
    """
    samples = open_samples(folder, model_file)
    audited = None if audit is None else read_audit(audit, samples.weights_sha256)
    evaluated = None if report is None else read_measured(report, samples.weights_sha256)
    facts = samples.facts()
    if report or audit:
        facts = with_figures(facts, samples.identity(inspect_set(samples.images)), evaluated, audited)
    for problem in problems(facts):
        logger.warning(problem)
    return _write(samples.folder, facts)


class Samples(NamedTuple):
    """A folder that inference wrote.

    Attributes:
        folder: of the samples.
        images: listed by the manifest.
        rows: of the manifest.
        weights_sha256: of the weights that the images were sampled from.
        model: these weights, not loaded; None if they were not given.
    """

    folder: Path
    images: ImageSet
    rows: Rows
    weights_sha256: str
    model: Model | None

    def facts(self) -> DataFacts:
        """Return what the card says without report and audit."""
        channels = len(read_image(self.images.paths[0])) if self.model is None else self.model.image_channels
        return _facts(self.folder, self.rows, channels, None if self.model is None else model_facts(self.model))

    def identity(self, inspected: Sequence[ImageFacts]) -> Identity:
        """Return what identifies the images.

        Args:
            inspected: of ``inspect_set``.
        """
        trained_on = None if self.model is None else self.model.trained_on
        return Identity(content_sha256(inspected), self.images.counts(), self.weights_sha256, trained_on)


def open_samples(folder: str | Path, model_file: str | Path | None = None) -> Samples:
    """Lock and open a folder that inference wrote; no image is decoded.

    Args:
        folder: of the samples.
        model_file: as for ``write_card``.

    Raises:
        ValueError: for a folder without samples, missing images, and other weights.
    """
    folder = Path(folder)
    if folder.is_dir():
        take_folders([folder])
    images = _open(folder)
    rows = read_manifest(folder / MANIFEST)
    weights = _weights_sha256(rows, folder)
    return Samples(folder, images, rows, weights, None if model_file is None else _model(model_file, weights))


def model_facts(model: Model) -> dict[str, Any]:
    """Return what a card of samples says about their weights; only known keys of their description.

    Args:
        model: its weights need not be loaded.
    """
    try:
        metadata = metadata_beside(model.path) or {}
    except ValueError as error:  # the images are written: the card can do without the bundle's name
        logger.warning("the card does not name the bundle: %s", error)
        metadata = {}
    size = (model.info.get("image") or {}).get("size", model.image_size)
    return {
        "bundle": " ".join(str(metadata[key]) for key in ("name", "version") if metadata.get(key)),
        "class_names": model.class_names,
        "class_shares": model.class_shares,
        "image": {"size": size, "channels": model.image_channels},
        "training": known_training(model.info.get("training")),
    }


def _open(folder: str | Path) -> ImageSet:
    if not (Path(folder) / MANIFEST).is_file():
        raise DataError(f"'{folder}' has no {MANIFEST}: name a folder that run inference wrote")
    return open_image_set("samples", folder)


def _weights_sha256(rows: Rows, folder: Path) -> str:
    found = sorted({row.get("weights_sha256") or "" for row in rows.values()})
    if len(found) != 1 or not found[0]:
        raise DataError(
            f"{folder / MANIFEST}: names {len(found)} weights in weights_sha256, but a card is of the samples of one "
            "model. Keep the samples of each model in a separate folder."
        )
    return found[0]


def _model(model_file: str | Path, weights_sha256: str) -> Model:
    path = weights_at(model_file)
    if not path.is_file():
        raise WeightsError(missing_weights(path))
    if file_sha256(path) != weights_sha256:
        raise WeightsError(
            f"{path} are other weights than those of the samples (SHA-256 {weights_sha256[:12]}...): name those that "
            "the images were sampled from, or leave out --model-file"
        )
    return Model(path)


def _facts(folder: Path, rows: Rows, channels: int, model: Mapping[str, Any] | None) -> DataFacts:
    refused = RowList.read(folder / REFUSED)
    counts, copies = (
        Counter((int(row["label"]), row["class_name"]) for row in each.values()) for each in (rows, refused)
    )
    columns = [name for name in next(iter(rows.values()), {}) if name not in ITEM_COLUMNS]
    return DataFacts(
        classes=[ClassCount(*each, counts[each], copies[each]) for each in sorted({*counts, *copies})],
        settings={name: "; ".join(sorted({row.get(name) or "" for row in rows.values()})) for name in columns},
        channels=channels,
        checksums={name: file_sha256(folder / name) for name in (MANIFEST, REFUSED) if (folder / name).is_file()},
        model=model,
    )


def with_figures(
    facts: DataFacts, identity: Identity, report: Mapping[str, Any] | None, audit: Mapping[str, Any] | None
) -> DataFacts:
    """Return the content of a card with those figures of a report and an audit that are of these images.

    Args:
        facts: without figures.
        identity: of the images.
        report: content of ``report.json``; None for none.
        audit: content of ``audit.json``; None for none.
    """
    problem = None if audit is None else readable("audit", lambda found: audit_problem(found, identity), audit)
    return facts._replace(
        checksums={**facts.checksums, "pixels of all images": identity.content_sha256},
        figures=None if report is None else readable("report", lambda found: own_figures(found, identity), report),
        audit=audit,
        audit_problem=problem,
    )


def _is_card_of(card: Path, checksums: Mapping[str, str]) -> bool:
    """Return whether a card describes the lists with these checksums."""
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    return bool(text) and all(value in text for value in checksums.values())


def _write(folder: Path, facts: DataFacts) -> Path:
    text = data_card(facts)
    try:
        with renamed_when_whole(folder / CARD) as partial:
            partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    except DiskFullError:
        raise
    except OSError as error:
        raise ValueError(
            f"{folder / CARD} cannot be written ({error.strerror}): make the folder writable, or copy it"
        ) from error
    logger.info("the card of %s images is %s", f"{sum(each.images for each in facts.classes):,}", folder / CARD)
    return folder / CARD
