"""Makes the package of a site's samples: ``medfusion share``."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import medfusion_monai
from medfusion_monai.data.datalist import DATALIST_NAME
from medfusion_monai.data.pixels import PIXELS
from medfusion_monai.data.preparing.new_datalist import make_datalist
from medfusion_monai.data.preparing.splits import DataError
from medfusion_monai.data.reading.images import pixel_digest, read_image
from medfusion_monai.diffusion.inferer import SETTINGS
from medfusion_monai.evaluation.image_form import ImageFacts, inspect_set
from medfusion_monai.export.data_card import data_card, problems
from medfusion_monai.export.own_figures import audit_problem
from medfusion_monai.export.public import known
from medfusion_monai.export.samples_folder import CARD, Samples, open_samples, with_figures
from medfusion_monai.report.read_back import measured_weights, read_audit, read_measured
from medfusion_monai.runtime.csv_cells import inert
from medfusion_monai.runtime.values import is_number
from medfusion_monai.sampling.image_formats import image_format
from medfusion_monai.sampling.plan import MANIFEST, file_name_of
from medfusion_monai.sampling.writer import ITEM_COLUMNS
from medfusion_monai.sites.package import ABOUT, AUDIT, FORMAT, IMAGES, LICENCE, LISTED, write_package
from medfusion_monai.sites.public_audit import public_audit, public_features
from medfusion_monai.weights.model_info import found_at

logger = logging.getLogger(__name__)

COLUMNS = (
    *ITEM_COLUMNS,
    "copy_guard",
    *SETTINGS,
    "decoder",
    "guidance_model",
    "prediction_type",
    "networks",
    "precision",
    "batch_size",
    "image_size",
    "output_format",
    "version",
    "weights_sha256",
)
"""Columns of a manifest of inference."""
SOURCE = "synthetic images of a package of medfusion share"
MOST_COPIES = 0.01
"""Share of flagged images that an audit finds at most where there are no copies."""
LONGEST_LICENCE = 1 << 20


def share_samples(
    samples: str | Path,
    model_file: str | Path,
    audit: str | Path,
    licence: str | Path,
    output: str | Path,
    most_copies: float = MOST_COPIES,
    report: str | Path | None = None,
) -> Path:
    """Write the package of a folder of samples: images, manifest, datalist, card, audit and licence.

    Images are encoded again from their pixels and the known columns of the manifest, so nothing that was added to
    their files travels. Weights do not travel, nor do paths, commands and names of files, and nothing of an audit that
    is about single images.

    Args:
        samples: folder that inference wrote, as PNG.
        model_file: the weights that the images were sampled from, or a folder or bundle that contains them.
        audit: ``audit.json`` of these images and weights.
        licence: text file with the terms for the images; its content travels as it is.
        output: the package, a zip.
        most_copies: largest share of images that the audit may have found to be copies.
        report: ``report.json`` of these images, for the card.

    Returns:
        The package.

    Raises:
        ValueError: for an audit of other images, weights or training images, one that withholds its rate of copies or
            found more than ``most_copies``, and for samples, a licence or an output that cannot be used.
    """
    check_most_copies(most_copies)
    terms, output = _read_licence(licence), Path(output)
    if output.suffix.lower() != ".zip":
        raise ValueError(f"the package {output} must be a file that ends in .zip")
    found = open_samples(samples, model_file)
    _refuse_other_manifest(found)
    audited = read_audit(audit, found.weights_sha256)
    if measured_weights(audited) is None:
        raise ValueError(f"{audit} does not state the weights it is of: audit again with --model-file")
    measured = None if report is None else read_measured(report, found.weights_sha256)
    if measured is not None:
        measured["features"] = public_features(measured.get("features"))
    inspected = inspect_set(found.images)
    identity = found.identity(inspected)
    problem = audit_problem(audited, identity)
    if problem:
        raise ValueError(f"{problem} Audit {samples} with --model-file {model_file}, and share that audit.json")
    _refuse_copies(audited, most_copies, audit)
    public = public_audit(audited)
    facts = with_figures(found.facts(), identity, measured, public)
    for problem in problems(facts):
        logger.warning(problem)
    manifest = _manifest(found.rows)
    sums = {LISTED: hashlib.sha256(manifest).hexdigest(), "pixels of all images": identity.content_sha256}
    card = data_card(facts._replace(terms=LICENCE, checksums=sums))
    texts = {
        ABOUT: _json(_about(found)),
        AUDIT: _json(public),
        CARD: card.encode(),
        LICENCE: terms,
        DATALIST_NAME: _json(_datalist(found, inspected)),
        LISTED: manifest,
    }
    write_package(output, _files(found, inspected, texts))
    return output


def check_most_copies(most: float) -> None:
    """Raise a ValueError for a largest share of copies that is not a share."""
    if not is_number(most) or not 0 <= most <= 1:
        raise ValueError(f"most_copies must be a share from 0 to 1, received {most!r}")


def _read_licence(path: str | Path) -> bytes:
    try:
        content = Path(path).read_bytes()
        text = content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"licence {path} cannot be read as text in UTF-8 ({error}): name another file") from error
    if not text.strip() or len(content) > LONGEST_LICENCE:
        raise ValueError(f"licence {path} is empty or larger than 1 MiB: name a text file with the terms")
    return content


def _refuse_other_manifest(found: Samples) -> None:
    """Raise for columns, files and formats that an inference with these weights does not write."""
    path, rows = found.folder / MANIFEST, found.rows.values()
    odd = sorted({name for row in rows for name in row} - set(COLUMNS))
    if odd:
        raise DataError(
            f"{path} has columns that inference does not write: {odd}. Edited images still show patients and cannot be "
            "shared as samples; sample into an empty folder."
        )
    formats = sorted({row.get("output_format") or "" for row in rows})
    if not set(formats) <= {"png", "png16"}:
        raise DataError(f"{path}: the images are {', '.join(formats)}. Sample them again with --output_format png.")
    assert found.model is not None
    known_classes = {str(label): name for label, name in enumerate(found.model.class_names)}
    for row in rows:
        if known_classes.get(row["label"]) != row["class_name"]:
            raise DataError(
                f"{path}: {row['file']} is of class {row['label']} {row['class_name']!r}, but the weights have "
                f"{known_classes}. Sample again with these weights."
            )
        start = f"{row['label']}_{file_name_of(row['class_name'])}_"
        if not re.fullmatch(re.escape(start) + r"[0-9]{6,}\.png", row["file"]):
            raise DataError(
                f"{path}: {row['file']!r} is not the name that inference gives an image of this class. Names of files "
                "travel with the images: sample into an empty folder."
            )


def _refuse_copies(audit: Mapping[str, Any], most: float, path: str | Path) -> None:
    row = audit["audit"]["rows"][0]
    rate = row["copy_rate"]
    if rate["value"] is None:
        raise ValueError(f"{path} states no rate of copies ({rate['note']}): nothing is shared without one")
    if rate["value"] > most:
        raise ValueError(
            f"{path}: {row['copies']} of {row['count']} images are copies of training images "
            f"({100 * rate['value']:.2f}%), more than the {100 * most:g}% of --most-copies. Sample again with "
            "--refuse_copies_of and the folder of the audit, then audit these samples"
        )


def _about(found: Samples) -> dict[str, Any]:
    model = found.model
    assert model is not None
    sizes = {row["image_size"] for row in found.rows.values()}
    if len(sizes) > 1:
        raise DataError(f"{found.folder / MANIFEST}: images of the sizes {sorted(sizes)}. Share those of one run.")
    form = {"size": [int(side) for side in sizes.pop().split("x")], "channels": model.image_channels}
    return {
        "format": FORMAT,
        "version": medfusion_monai.__version__,
        "class_names": list(model.class_names),
        "image": {**form, **known(model.info.get("image"), ("resize_mode",))},
        "latent_channels": found_at(model.info, "latent_channels"),
        "weights_sha256": found.weights_sha256,
        "synthetic": True,
    }


def _datalist(found: Samples, inspected: Sequence[ImageFacts]) -> dict[str, Any]:
    assert found.model is not None
    records = [
        {
            "image": f"{IMAGES}/{file}",
            "label": int(found.rows[file]["label"]),
            "patient": Path(file).stem,
            PIXELS: fact.digest,
        }
        for file, fact in zip(sorted(found.rows), inspected, strict=True)
    ]
    counts = {"synthetic": len(records)}
    return make_datalist({"training": records}, found.model.class_names, SOURCE, seed=0, counts=counts)


def _manifest(rows: Mapping[str, Mapping[str, str]]) -> bytes:
    columns = [name for name in COLUMNS if name in next(iter(rows.values()))]
    text = io.StringIO()
    table = csv.DictWriter(text, columns, lineterminator="\n")
    table.writeheader()
    table.writerows({name: inert(value) for name, value in rows[file].items()} for file in sorted(rows))
    return text.getvalue().encode()


def _files(found: Samples, inspected: Sequence[ImageFacts], texts: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Yield the files of the package; images are encoded one at a time."""
    yield from texts.items()
    with TemporaryDirectory() as scratch:
        copy = Path(scratch) / "image.png"
        for file, fact in zip(sorted(found.rows), inspected, strict=True):
            copy.write_bytes(_encoded(found.folder / file, found.rows[file]))
            if pixel_digest(read_image(copy)) != fact.digest:
                raise DataError(f"{found.folder / file}: its pixels are not those of a PNG of inference. Sample again.")
            yield f"{IMAGES}/{file}", copy.read_bytes()


def _encoded(path: Path, row: Mapping[str, str]) -> bytes:
    """Return an image as inference encodes it, whatever else was added to its file."""
    note = {"synthetic": True, "generator": "medfusion_monai", **row}
    note |= {name: int(row[name]) for name in ("label", "seed")}
    return image_format(row["output_format"]).encode(read_image(path), note)


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
