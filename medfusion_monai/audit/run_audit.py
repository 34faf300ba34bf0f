"""The memorisation audit of a model, from its images, its data set and, if given, its weights: ``medfusion audit``."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medfusion_monai.audit.audit_settings import LATENTS, AuditSettings
from medfusion_monai.audit.closest_pairs import closest_picture, closest_rows
from medfusion_monai.audit.fingerprints import FLIPS
from medfusion_monai.audit.guard import GUARD_NAME, CopyGuard
from medfusion_monai.audit.latents import LatentFeatures
from medfusion_monai.audit.measure import (
    Copies,
    copy_rows,
    describe_copies,
    find_copies,
    make_guard,
    nearer_figure,
    repeats_in,
)
from medfusion_monai.audit.membership import membership_of
from medfusion_monai.audit.power import measure_power
from medfusion_monai.audit.sets import (
    NO_CONCLUSION,
    AuditedSet,
    AuditError,
    RealImages,
    open_held_out,
    open_training,
    take_prints,
)
from medfusion_monai.data.datalist import DATALIST_NAME, find_datalist
from medfusion_monai.data.pixels import PIXELS, fingerprint
from medfusion_monai.data.training.latent_identity import describe_transforms
from medfusion_monai.evaluation.image_form import ImageFacts, common_form, content_sha256, inspect_set
from medfusion_monai.evaluation.image_set import open_image_set
from medfusion_monai.evaluation.metrics.feature_cache import Extraction
from medfusion_monai.evaluation.metrics.features import AUTO, load_extractor
from medfusion_monai.evaluation.metrics.intervals import Figure
from medfusion_monai.evaluation.settings import refuse_inside
from medfusion_monai.model import Model, make_preprocessing
from medfusion_monai.report.audit_sections import audit_warnings
from medfusion_monai.report.builder import Draft
from medfusion_monai.runtime.distributed import from_first
from medfusion_monai.runtime.errors import WeightsError
from medfusion_monai.runtime.files import file_sha256
from medfusion_monai.runtime.locks import use_folders
from medfusion_monai.runtime.seeds import derive_seed
from medfusion_monai.weights.model_info import FEW_STEPS, GAN, kind_of

logger = logging.getLogger(__name__)

PICTURE = "closest.png"
RESULTS = ("audit.html", "audit.md", "audit.json", PICTURE, GUARD_NAME)
"""Files that an audit writes into its folder."""
NEEDS_MODEL = "needs the model's weights (--model-file)"
NO_DENOISING = {
    GAN: "the model is a GAN, which has no denoising loss",
    FEW_STEPS: "the model is tuned for few steps and has no denoising loss: audit the weights that it was tuned from",
}

UNKNOWN_TRAINING = (
    "No file states which images the model was trained on: the audit assumes the training images of this data set. If "
    "it was trained on others, their copies are not found."
)


class Audit:
    """An audit, step by step; ``run`` does all of it.

    Several processes each read a share of the images and run networks on it; only the first compares and writes.

    Args:
        dataset_dir: folder of the datalist that the model was trained with.
        samples_dir: folder of the generated images, see ``open_image_set``.
        output: folder of the report; features are kept in its folder ``cache``.
        model: of ``medfusion_monai.load``, for its latents and for membership inference; None without weights.
        settings: how to measure and what to show; None for the defaults.

    Raises:
        ValueError: for data that allows no conclusion, images that cannot be compared, or a setting out of range.
    """

    def __init__(
        self,
        dataset_dir: str | Path,
        samples_dir: str | Path,
        output: str | Path,
        model: Model | None = None,
        settings: AuditSettings | None = None,
    ) -> None:
        self.settings = settings = settings or AuditSettings()
        if settings.features == LATENTS and model is None:
            raise ValueError(f"features={LATENTS} {NEEDS_MODEL}")
        self.model, self.dataset_dir, self.output = model, dataset_dir, Path(output)
        refuse_inside(output, {"generated": samples_dir})
        use_folders([output])
        from_first(self._remove_earlier)
        self.weights_sha256 = None if model is None else _weights_sha256(model)
        names = model.class_names if model else None
        self.real: dict[str, RealImages] = {
            "training": open_training(dataset_dir, names),
            "held-out": open_held_out(dataset_dir, names),
        }
        self.samples = open_image_set("generated", samples_dir)
        self.extractor = self._make_extractor(settings.features)
        self.draft = Draft(
            "Memorisation audit",
            settings={"flips": settings.flips, "features": self.extractor.name},
            seeds={"seed": settings.seed},
        )

    def run(self) -> dict[str, Any]:
        """Measure, write the report and the guard, and return what ``audit.json`` holds."""
        training, held_out, generated = (self.sets[name] for name in ("training", "held-out", "generated"))
        known = {fact.digest for fact in training.facts}
        equal = torch.tensor([fact.digest in known for fact in held_out.facts], dtype=torch.bool)
        prints = (training.prints, held_out.prints, generated.prints)
        copies = from_first(lambda: find_copies(*prints, equal, self.settings.flips))
        kept = copies.kept if copies else (~equal).nonzero()[:, 0]
        membership = self._membership(kept)
        return from_first(lambda: self._write(copies, equal, kept, membership))

    def _write(
        self, copies: Copies | None, equal: Tensor, kept: Tensor, membership: Mapping[str, Any]
    ) -> dict[str, Any]:
        training, held_out, generated = (self.sets[name] for name in ("training", "held-out", "generated"))
        flips, results = self.settings.flips, self.draft.results
        results["sets"] = [_describe(each) for each in self.sets.values()]
        results["audit"] = {
            **describe_copies(copies, flips),
            "features": self.extractor.describe(),
            "rows": copy_rows(copies, len(training.images.items), generated, self.class_names),
            "repeats": repeats_in(training),
            "leaks": self._leaks(copies, equal),
            "nearer_to_training": nearer_figure(training, held_out, generated, kept, self.settings.seed).as_dict(),
            "closest": closest_rows(copies, generated.images.paths) if copies else [],
            "membership": membership,
            "earlier_trainings_on_other_images": self._earlier_on_others(),
        }
        if copies and self.settings.pictures:
            picture, caption = closest_picture(copies, training, held_out, generated)
            self.draft.add_picture(PICTURE, picture, "Closest pairs", caption)
        guard = make_guard(training.prints, held_out.prints, copies, training.stack([0]).shape[-2:], flips, self._found)
        if guard is not None:
            self.draft.note("checksums", **{GUARD_NAME: file_sha256(guard.save(self.output))})
            results["audit"]["guard"] = guard.calibration._asdict()
            results["audit"]["power"] = self._power(guard, copies)
        self._note_sources()
        self.draft.add_warnings(*audit_warnings(results))
        return self.draft.write(self.output, "audit")

    def _remove_earlier(self) -> None:
        """Remove the results of an earlier audit, which must not be mistaken for those of a refused one."""
        for name in RESULTS:
            (self.output / name).unlink(missing_ok=True)

    def _note_sources(self) -> None:
        """Record data set and weights, and warn if nothing states which images the model was trained on."""
        datalist = find_datalist(self.dataset_dir)
        self.draft.note("checksums", **{DATALIST_NAME: file_sha256(datalist), "training images": self._found})
        if self.weights_sha256 is not None:
            self.draft.note("checksums", **{"model.pt": self.weights_sha256})
        if self._trained_on is None:
            self.draft.add_warnings(UNKNOWN_TRAINING)

    @property
    def _trained_on(self) -> str | None:
        return self.model.trained_on if self.model else None

    def _earlier_on_others(self) -> int:
        """Return how many other trainings behind these weights had other or unknown images."""
        return 0 if self.model is None else sum(images != self._found for images in self.model.earlier_trained_on)

    def _identify(self, facts: Sequence[ImageFacts]) -> str:
        """Return the ``fingerprint`` of the training images.

        Raises:
            AuditError: if the model was trained on other images than those of the data set.
        """
        items = self.real["training"].images.items
        found = fingerprint([{**item, PIXELS: fact.digest} for item, fact in zip(items, facts, strict=True)])
        if self._trained_on not in (None, found):
            raise AuditError(
                f"{self.dataset_dir}: the model was trained on other images, or with other labels, than those of "
                f"split 'training' (fingerprint {found}; model.json has {self._trained_on}).\n"
                f"No audit: {NO_CONCLUSION}."
            )
        return found

    @property
    def class_names(self) -> list[str]:
        """Names of the real images' classes, in label order."""
        return self.real["training"].images.class_names

    @cached_property
    def sets(self) -> dict[str, AuditedSet]:
        """Generated, training and held-out images, all read in the same form.

        Raises:
            DataError: for images that cannot be read or compared.
        """
        images = {"generated": self.samples, **{name: each.images for name, each in self.real.items()}}
        facts = from_first(lambda: {name: inspect_set(each) for name, each in images.items()})
        self._found = self._identify(facts["training"])
        load, form = self._form({name: each for name, each in facts.items() if each})
        numbers = self._patient_numbers()
        axes = FLIPS[self.settings.flips]
        cache, batch_size, device = self.output / "cache", self.settings.batch_size, self.settings.device
        extraction = Extraction(self.extractor, cache, batch_size, device)
        sets = {}
        for name, each in images.items():
            logger.info("fingerprints of %d %s images", len(each.items), name)
            turns = axes[:1] if name == "training" else axes
            prints = take_prints(each, numbers[name], load, turns, form, extraction)
            sets[name] = AuditedSet(each, facts[name], prints, load)
        return sets

    def _form(self, facts: Mapping[str, Sequence[ImageFacts]]) -> tuple[Callable[[str], Tensor], str]:
        """Return the function that reads images, and its description, by which cached features are found."""
        own = max((fact.size for fact in facts["generated"]), key=[fact.size for fact in facts["generated"]].count)
        form = common_form(facts, self.settings.size or (self.model.image_size if self.model else own), least=1)
        if self.model is None:
            return form.load, form.describe()
        preprocessing = make_preprocessing(self.model)
        words = json.dumps(describe_transforms(preprocessing))
        return (lambda path: torch.as_tensor(preprocessing({"image": path})["image"])), words

    def _make_extractor(self, features: str | None) -> Any:
        own = features == LATENTS or (features is None and self.model is not None and self.model.has_latents)
        if not own:
            return load_extractor(features or AUTO)
        assert self.model is not None
        assert self.weights_sha256 is not None
        return LatentFeatures(self.model.network.autoencoder, self.weights_sha256, self.model.image_size)

    def _patient_numbers(self) -> dict[str, Tensor]:
        names = sorted({patient for each in self.real.values() for patient in each.patients})
        number = {name: index for index, name in enumerate(names)}
        real = {
            name: torch.tensor([number[p] for p in each.patients], dtype=torch.long) for name, each in self.real.items()
        }
        return {"generated": torch.full((len(self.samples.items),), -1), **real}

    def _leaks(self, copies: Copies | None, equal: Tensor) -> list[dict[str, Any]]:
        """List the held-out images that are also training images, by their number in the datalist."""
        leaked = equal if copies is None else copies.leaked
        places = self.real["held-out"].places
        return [
            {"split": places[index][0], "number": places[index][1], "equal": bool(equal[index])}
            for index in leaked.nonzero()[:, 0].tolist()
        ]

    def _power(self, guard: CopyGuard, copies: Copies | None) -> dict[str, Any]:
        """Measure the guard on degraded copies of some training images."""
        number, training = self.settings.power_images, self.sets["training"]
        if not number or copies is None:
            return {}
        order = np.random.default_rng(derive_seed("power", self.settings.seed)).permutation(len(training.facts))
        return measure_power(guard, training.stack(sorted(order[:number].tolist())), copies.held_out.scores)

    def _membership(self, kept: Tensor) -> dict[str, Any]:
        """Measure how well the denoising loss separates training images from held-out ones."""
        if self.model is None:
            return {"auc": Figure(None, note=f"not measured: {NEEDS_MODEL}").as_dict()}
        kind = kind_of(self.model.info)
        if kind in NO_DENOISING:
            return {"auc": Figure(None, note=f"not measured: {NO_DENOISING[kind]}").as_dict()}
        settings = self.settings
        if not settings.membership_images:
            return {}
        training, held_out = (self.real[name].images.items for name in ("training", "held-out"))
        others = [held_out[index] for index in kept.tolist()]
        options = (settings.replicates, settings.batch_size, settings.device, settings.seed)
        return membership_of(self.model, training, others, settings.membership_images, *options)


def _weights_sha256(model: Model) -> str:
    """Return the checksum of the file that a model was loaded from, which identifies its audit.

    Raises:
        WeightsError: if the file no longer exists, as for a zip.
    """
    if not model.path.is_file():
        raise WeightsError(
            f"weights {model.path} no longer exist, and an audit records their checksum: name a weights file or the "
            "folder of a bundle (unpack a zip first)"
        )
    return file_sha256(model.path)


def _describe(images: AuditedSet) -> dict[str, Any]:
    return {
        "name": images.images.name,
        "source": images.images.source,
        "count": len(images.images.items),
        "classes": images.images.counts(),
        "size": list(images.facts[0].size) if images.facts else None,
        "channels": (3 if any(fact.coloured for fact in images.facts) else 1) if images.facts else None,
        "content_sha256": content_sha256(images.facts),
    }
