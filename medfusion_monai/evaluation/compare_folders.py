"""Comparison of any generator's images with real ones, from folders: ``medfusion compare``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medfusion_monai.data.datalist import DATALIST_NAME
from medfusion_monai.data.preparing.splits import DataError
from medfusion_monai.evaluation.image_form import ImageFacts, common_form, inspect_set, refuse_changed
from medfusion_monai.evaluation.image_set import ImageSet, open_image_set
from medfusion_monai.evaluation.measured_set import Measured, measure_set
from medfusion_monai.evaluation.metrics.feature_cache import Extraction
from medfusion_monai.evaluation.metrics.features import load_extractor
from medfusion_monai.evaluation.metrics.fidelity import fidelity_columns
from medfusion_monai.evaluation.report_parts import add_fidelity, add_neighbours, add_real_baseline, add_steering
from medfusion_monai.evaluation.settings import CompareSettings, check_names, refuse_inside
from medfusion_monai.report.builder import Draft
from medfusion_monai.runtime.files import make_folders
from medfusion_monai.runtime.locks import take_folders


def compare(
    reference: str | Path,
    images: Mapping[str, str | Path],
    output: str | Path,
    split: str | None = None,
    size: Sequence[int] | None = None,
    settings: CompareSettings | None = None,
) -> dict[str, Any]:
    """Compare sets of generated images with real ones and write the report.

    If the reference is a prepared data set, the report also shows nearest training images and, by a classifier, whether
    the label steers.

    Args:
        reference: folder of the real images, see ``open_image_set``.
        images: folders of the generated ones, by name.
        output: folder of the report; features are kept in its folder ``cache``.
        split: of a prepared reference; None takes ``reference`` if there is one, else ``test``.
        size: (height, width) that all images are resized to; None resizes real images to the size of the generated
            ones, which must then have one.
        settings: how to measure; None for the defaults.

    Returns:
        The content of ``report.json``.

    Raises:
        ValueError: for images that cannot be compared, or missing weights.
    """
    settings = settings or CompareSettings()
    check_names(list(images))
    opened = {"reference": open_image_set("reference", reference, split)}
    opened |= {name: open_image_set(name, folder) for name, folder in images.items()}
    refuse_inside(output, {"reference": reference, **images})
    make_folders([output])
    take_folders([output])
    extractor = load_extractor(settings.features).to(settings.device)
    extraction = Extraction(extractor, Path(output) / "cache", settings.batch_size, settings.device)
    splits = _open_splits(reference, settings)
    facts = {name: inspect_set(image_set) for name, image_set in opened.items()}
    draft = _measure(opened, facts, splits, size, extraction, settings)
    for name, image_set in opened.items():
        refuse_changed(image_set, facts[name])
    return draft.write(output)


def _measure(
    opened: Mapping[str, ImageSet],
    facts: Mapping[str, Sequence[ImageFacts]],
    splits: Mapping[str, ImageSet],
    size: Sequence[int] | None,
    extraction: Extraction,
    settings: CompareSettings,
) -> Draft:
    """Fill a report. The first of the opened sets is the reference."""
    # The splits need the same form, or features and classifiers would pick up the difference in form.
    facts_of_splits = {f"split '{name}'": inspect_set(image_set) for name, image_set in splits.items()}
    of_all = {**facts, **facts_of_splits}
    form = common_form(of_all, size, real=["reference", *facts_of_splits], mode=settings.resize_mode)

    def measure(image_set: ImageSet, known: Sequence[ImageFacts] = ()) -> Measured:
        return measure_set(image_set, form.load, form.describe(), extraction, known)

    real, *sets = [measure(image_set, facts[name]) for name, image_set in opened.items()]
    seed, k = settings.seed, settings.k
    draft = Draft(
        "Generated images against real ones",
        settings={"k": k, "replicates": settings.replicates, "form": form.describe()},
        seeds={"seed": seed},
        fidelity=fidelity_columns(),
    )
    draft.results["sets_note"] = f"Images were measured {form.describe()}." + (
        " Generated images had this size." if form.resized and size is None else ""
    )
    add_fidelity(draft, real, sets, extraction.extractor, settings.replicates, seed, k)
    if splits and settings.neighbours:
        training = measure(splits["training"])
        if settings.features is not None:
            add_real_baseline(draft, real, sets, training, seed, k)
        add_neighbours(draft, sets, training, extraction.extractor, settings.neighbours)
    if splits and settings.classifier_seeds:
        train, test = splits["training"], splits["test"]
        add_steering(draft, train, test, form.load, sets, settings.classifier_seeds, settings.device)
    return draft


def _open_splits(reference: str | Path, settings: CompareSettings) -> dict[str, ImageSet]:
    """Open the splits of a prepared reference that nearest training images and the classifier need."""
    classifier = bool(settings.classifier_seeds)
    if not (Path(reference) / DATALIST_NAME).is_file() or not (settings.neighbours or classifier):
        return {}
    try:
        wanted = ("training", "test") if classifier else ("training",)
        return {name: open_image_set(name, reference, name) for name in wanted}
    except DataError as error:
        raise DataError(
            f"{error} Or leave out the parts that need this split: nearest training images by --neighbours 0, the "
            "classifier by --classifier-seeds without a number."
        ) from error
