"""The evaluation of a bundle, step by step: reconstructions, generated images, label, sampling steps, the report."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from monai.transforms import Compose
from torch import Tensor

from medfusion_monai.data.datalist import REFERENCE, find_datalist, read_datalist
from medfusion_monai.data.preparing.splits import DataError
from medfusion_monai.data.training.latent_identity import describe_transforms
from medfusion_monai.diffusion.inferer import LatentDiffusionSampler
from medfusion_monai.diffusion.spacing import spaced_timesteps
from medfusion_monai.evaluation.image_form import (
    ImageFacts,
    ImageForm,
    content_sha256,
    exact_form,
    inspect_set,
    refuse_changed,
)
from medfusion_monai.evaluation.image_set import MANIFEST, ImageSet, default_reference, open_image_set
from medfusion_monai.evaluation.measured_set import Measured, measure_set
from medfusion_monai.evaluation.metrics.features import load_extractor
from medfusion_monai.evaluation.metrics.lpips import BACKBONES
from medfusion_monai.evaluation.metrics.set_metrics import own_batches
from medfusion_monai.evaluation.paper_figures import published_reconstructions
from medfusion_monai.evaluation.reconstructions import reconstruction_picture, table_rows, write_values
from medfusion_monai.evaluation.report_parts import add_fidelity, add_neighbours, add_real_baseline, add_steering
from medfusion_monai.evaluation.settings import RESERVED, check_kinds
from medfusion_monai.evaluation.step_sweep import sweep_rows
from medfusion_monai.model import Model
from medfusion_monai.networks.diffusers_autoencoder import DiffusersAutoencoder
from medfusion_monai.networks.medfusion import Medfusion
from medfusion_monai.report.builder import Draft
from medfusion_monai.report.read_back import read_audit
from medfusion_monai.runtime.distributed import from_first
from medfusion_monai.runtime.dtype import precision_name
from medfusion_monai.runtime.errors import WeightsError
from medfusion_monai.runtime.files import file_sha256
from medfusion_monai.runtime.values import check_counts
from medfusion_monai.sampling.plan import sampling_plan
from medfusion_monai.weights import pretrained

logger = logging.getLogger(__name__)

OURS = "Medfusion"
TIMESTEPS = 1000


class Evaluation:
    """What ``run evaluating`` measures, and the report that it writes; each ``add_...`` fills a part of it.

    Several processes run networks on a share of the images each; the first alone compares and writes. All call the
    same methods in the same order.

    Args:
        model: says class names, image size and channels.
        dataset_dir: folder of the datalist.
        preprocessing: reads an item of the datalist.
        output_dir: folder of the report; features are kept in its folder ``cache``.
        splits: of the datalist, whose images are reconstructed; None takes ``test``, and ``reference`` where there is
            one.
        reference_split: of the datalist, whose images generated ones are compared with; None takes ``reference``, else
            ``test``.
        samples_dir: folder that inference wrote; without samples in it, or None, they are left out.
        other_samples: folders of other generators' images, by name.
        features: of ``load_extractor``: which features images are compared by.
        replicates: resampled sets behind each interval; 0 for none.
        batch_size: images that are measured at once.
        device: where to compute.
        seed: of all that is drawn.
    """

    def __init__(
        self,
        model: Model,
        dataset_dir: str | Path,
        preprocessing: Compose,
        output_dir: str | Path,
        splits: str | Sequence[str] | None = None,
        reference_split: str | None = None,
        samples_dir: str | Path | None = None,
        other_samples: Mapping[str, str] | None = None,
        features: str = "inception",
        replicates: int = 100,
        batch_size: int = 8,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        self.dataset_dir, self.class_names, self.preprocessing = dataset_dir, model.class_names, preprocessing
        self.image_size, self.image_channels, self.output_dir = model.image_size, model.image_channels, Path(output_dir)
        self.samples_dir, self.other_samples, self.features = samples_dir, other_samples or {}, features
        self.replicates, self.batch_size, self.device, self.seed = replicates, batch_size, device, seed
        self.splits, self._reference_split = splits, reference_split
        self.form = json.dumps(describe_transforms(preprocessing))  # stored features are taken only for the same
        self.opened: dict[str, ImageSet] = {}
        self.draft = Draft(
            f"Medfusion: {', '.join(self.class_names)}",
            settings={"features": features.partition(":")[0], "replicates": replicates, "image_size": self.image_size},
            seeds={"seed": seed},
        )

    @cached_property
    def reference_split(self) -> str:
        """The split that generated images are compared with."""
        return self._reference_split or default_reference(self.dataset_dir)

    @cached_property
    def items(self) -> list[dict[str, Any]]:
        """The images that are reconstructed, with ``split`` and their ``number`` in it.

        Raises:
            DataError: as of ``read_datalist``.
        """
        splits = self.splits
        if splits is None:
            splits = ["test", REFERENCE] if default_reference(self.dataset_dir) == REFERENCE else ["test"]
        return [
            {**item, "split": split, "number": number}
            for split in dict.fromkeys([splits] if isinstance(splits, str) else splits)
            for number, item in enumerate(read_datalist(self.dataset_dir, split, self.class_names))
        ]

    @property
    def own_items(self) -> list[dict[str, Any]]:
        """Those of ``items`` that this process reconstructs: its batches, or all, if not every process gets one."""
        if len(self.items) <= self.batch_size * (idist.get_world_size() - 1):
            return self.items
        return [self.items[place] for batch in own_batches(len(self.items), self.batch_size) for place in batch]

    @cached_property
    def sample_sets(self) -> list[tuple[ImageSet, ImageForm, list[ImageFacts]]]:
        """The sets of generated images, each decoded once.

        Raises:
            DataError: a set that is missing, unreadable, or of another size or colour than the bundle's.
        """
        return from_first(self._open_samples)

    def _open_samples(self) -> list[tuple[ImageSet, ImageForm, list[ImageFacts]]]:
        folders = dict(self.other_samples)
        if self.samples_dir is not None and os.path.isfile(Path(self.samples_dir) / MANIFEST):
            folders = {OURS: str(self.samples_dir), **folders}
        elif self.samples_dir is not None:
            logger.warning("no samples of inference in %s: they are not measured", self.samples_dir)
            self.draft.add_warnings(
                f"Samples of this model were not measured: the folder '{Path(self.samples_dir).name}' holds no "
                f"{MANIFEST}, which inference writes."
            )
        opened = []
        for name, folder in folders.items():
            images = open_image_set(name, folder)
            facts = inspect_set(images)
            opened.append((images, exact_form(name, facts, self.image_size, self.image_channels), facts))
        return opened

    @cached_property
    def extractor(self) -> Any:
        """The network that gives the features.

        Raises:
            ValueError: for weights that are missing or damaged.
        """
        try:
            return load_extractor(self.features).to(self.device)
        except WeightsError as error:
            raise WeightsError(
                f"{error}. Or compare by other features (--features), or measure reconstructions alone "
                "(--samples_dir null, no --sweep_steps)"
            ) from error

    @cached_property
    def reference(self) -> Measured:
        """The real images that generated ones are compared with."""
        return self._real(self.reference_split, "reference")

    @cached_property
    def training(self) -> Measured:
        """The images that the model was trained on."""
        return self._real("training", "training")

    @cached_property
    def generated(self) -> list[Measured]:
        """The generated images."""
        return [self._measure(images, form.load, form.describe(), facts) for images, form, facts in self.sample_sets]

    def check_settings(self, neighbours: int, sweep_samples: int) -> None:
        """Check settings that are numbers or switches.

        Raises:
            ValueError: naming the key and the value.
        """
        check_counts(0, replicates=self.replicates, neighbours=neighbours, seed=self.seed)
        check_counts(batch_size=self.batch_size, sweep_samples=sweep_samples)

    def check(
        self,
        others: Mapping[str, str] | None = None,
        sweep_steps: Sequence[int] = (),
        neighbours: int = 8,
        classifier_seeds: Sequence[int] = (0, 1, 2),
    ) -> None:
        """Find what is wrong before anything is measured.

        Args:
            others: folders of other first stages, by name, for ``add_reconstructions``.
            sweep_steps: of ``add_sweep``.
            neighbours: of ``add_generated``.
            classifier_seeds: of ``add_steering``.

        Raises:
            ValueError: naming what is missing or does not fit.
        """
        check_kinds(self.other_samples, others or {}, self.splits, sweep_steps, classifier_seeds)
        taken = sorted({OURS, *RESERVED} & {*self.other_samples, *(others or {})})
        if taken:
            raise ValueError(f"the names {taken} are those of this bundle's images and the real ones: use others")
        self.items  # noqa: B018  raises at once
        self.others = {name: DiffusersAutoencoder(folder) for name, folder in (others or {}).items()}
        blank = torch.zeros(1, self.image_channels, *self.image_size)
        for other in self.others.values():
            other.check_image(blank)
        for number in sweep_steps:
            spaced_timesteps(number, TIMESTEPS)
        if self.sample_sets or sweep_steps:
            self.extractor  # noqa: B018  likewise
            self._check_real(neighbours, classifier_seeds)

    def _check_real(self, neighbours: int, classifier_seeds: Sequence[int]) -> None:
        """Raise a DataError if the datalist lacks a split that generated images are compared with."""
        if len(self._open(self.reference_split).items) < 2:
            raise DataError(
                f"split '{self.reference_split}': a single image has no spread to compare generated ones with. Prepare "
                "the data with more, or measure reconstructions alone (--samples_dir null, no --sweep_steps)."
            )
        if not self.sample_sets:
            return
        try:
            if neighbours or classifier_seeds:
                self._open("training")
            if classifier_seeds:
                self._open("test")
        except DataError as error:
            raise DataError(
                f"{error} Or leave out what needs this split: --neighbours 0 --classifier_seeds '[]'."
            ) from error

    def add_reconstructions(self, evaluator: Any, network: Medfusion, lpips: str | None = None) -> None:
        """Reconstruct the splits' images by each first stage: tables 1, 2 and 4 and figure 2 of the paper.

        Args:
            evaluator: a ``SupervisedEvaluator`` over ``own_items`` whose metrics keep each image's value.
            network: ours.
            lpips: backbone of LPIPS, if it is among the metrics.
        """
        checksums = {f"first stage {name}": other.sha256 for name, other in self.others.items()}
        if lpips is not None:
            checksums[f"LPIPS, {lpips}"] = pretrained.KNOWN[BACKBONES[lpips]].sha256
        self.draft.note("checksums", **checksums)
        stages = {OURS: network, **self.others}
        values: dict[str, dict[str, Tensor]] = {}
        for name, stage in stages.items():
            evaluator.network = stage.to(self.device)
            evaluator.run()
            details = evaluator.state.metric_details.items()  # of all processes, repeated where each had all items
            values[name] = {measure: each[: len(self.items)] for measure, each in details}
        from_first(lambda: self._show_reconstructions(values, network))

    def _show_reconstructions(self, values: Mapping[str, Mapping[str, Tensor]], network: Medfusion) -> None:
        self.draft.results["reconstructions"] = [
            row for name, own in values.items() for row in table_rows(name, self.items, own, self.seed)
        ]
        self.draft.results["published_reconstructions"] = published_reconstructions(self.class_names)
        write_values(self.output_dir, self.items, values[OURS])
        picture = reconstruction_picture({OURS: network.autoencoder, **self.others}, self.items, self._load)
        caption = "Images spread evenly over the splits, their reconstructions, and the difference four times enlarged."
        self.draft.add_picture("figure_2_reconstructions.png", picture, "Reconstructions", caption)

    def add_generated(self, neighbours: int = 8) -> None:
        """Compare generated images with real ones: table 3 and figure 4, and nearest training images.

        Args:
            neighbours: generated images that are shown beside their nearest training images; 0 for none.
        """
        if not self.generated:
            return
        draft, reference, generated, seed = self.draft, self.reference, self.generated, self.seed
        training = self.training if neighbours else None  # features are of all processes, what follows of the first

        def compare() -> None:
            add_fidelity(draft, reference, generated, self.extractor, self.replicates, seed)
            if training is not None:
                add_real_baseline(draft, reference, generated, training, seed)
                add_neighbours(draft, generated, training, neighbours)

        from_first(compare)

    def add_steering(self, seeds: Sequence[int] = (0, 1, 2)) -> None:
        """Measure whether the label steers and what generated images are worth for training.

        Args:
            seeds: trainings of the classifier; none leaves this part out.
        """
        if self.generated and seeds:
            train, test, generated = self._open("training"), self._open("test"), self.generated
            from_first(lambda: add_steering(self.draft, train, test, self._load, generated, seeds, self.device))

    def add_audit(self, audit_file: str | Path | None, model_file: str | Path) -> None:
        """Take over an audit of these weights: its figures and warnings, not its pictures.

        Args:
            audit_file: ``audit.json`` of ``medfusion audit``; None leaves this part out.
            model_file: the weights.

        Raises:
            ValueError: for a file that holds no audit, or one of other weights.
        """
        if audit_file is None:
            return
        audit = read_audit(audit_file, file_sha256(model_file))
        self.draft.results["audit"] = audit["audit"]
        self.draft.note("checksums", **{Path(audit_file).name: file_sha256(audit_file)})
        self.draft.add_warnings(*audit["warnings"])
        [audited] = [item for item in audit["sets"] if item["name"] == "generated"]
        ours = {content_sha256(facts) for images, _, facts in self.sample_sets if images.name == OURS}
        if ours - {audited["content_sha256"]}:
            self.draft.add_warnings(
                "The audit is of other generated images than those of this report: run medfusion audit with the same "
                "samples."
            )

    def add_sweep(
        self,
        network: Medfusion,
        sampler: LatentDiffusionSampler,
        model_file: str | Path,
        steps: Sequence[int],
        num_samples: int = 64,
    ) -> None:
        """Measure quality by the number of sampling steps: figure 7 of the paper.

        Args:
            network: with its weights.
            sampler: with all settings but the number of steps.
            model_file: the weights, whose checksum tells stored features apart.
            steps: numbers of sampling steps; none leaves this part out.
            num_samples: images of each class and number of steps.
        """
        if not steps:
            return
        plan = sampling_plan(self.class_names, num_samples=num_samples, seed=self.seed)
        settings = ("sampler", "spacing", "guidance_scale", "eta", "negative_label", "null_label", "latent_shape")
        features = self.extractor.describe()
        identity = {
            **{name: getattr(sampler, name) for name in settings},
            "schedule": [sampler.schedule.prediction_type, sampler.schedule.exact_signal, sampler.schedule.exact_sigma],
            "precision": precision_name(sampler.dtype),
            "network": str(network),  # groups of a norm, e.g., are in no weight
            "weights": file_sha256(model_file),
            "features": features,
        }
        self.draft.results["features"] = features
        self.draft.results["sweep"] = {
            "name": OURS,
            "note": f"{num_samples} images of each class and number of steps, of the same seeds each time, against "
            f"{len(self.reference.features)} images of the reference; sampler {sampler.sampler}, spacing "
            f"{sampler.spacing}, eta {sampler.eta:g}, guidance {sampler.guidance_scale:g}.",
            "rows": sweep_rows(
                network,
                sampler,
                plan,
                steps,
                self.reference.features,
                self.extractor,
                identity,
                self.cache_dir,
                self.batch_size,
                self.device,
                self.replicates,
                self.seed,
            ),
        }

    def write(self, model_file: str | Path) -> dict[str, Any]:
        """Write the report and return its figures.

        Args:
            model_file: the weights.
        """
        return from_first(lambda: self._write(model_file))

    def _write(self, model_file: str | Path) -> dict[str, Any]:
        for images, _, facts in self.sample_sets:
            refuse_changed(images, facts)
        datalist = find_datalist(self.dataset_dir)
        self.draft.note("checksums", **{"model.pt": file_sha256(model_file), datalist.name: file_sha256(datalist)})
        results = self.draft.write(self.output_dir)
        logger.info("the report is %s", self.output_dir / "report.html")
        return results

    @property
    def cache_dir(self) -> Path:
        """Where features are kept."""
        return self.output_dir / "cache"

    def _load(self, path: str) -> Tensor:
        return torch.as_tensor(self.preprocessing({"image": path})["image"])

    def _real(self, split: str, name: str) -> Measured:
        return self._measure(self._open(split)._replace(name=name), self._load, self.form)

    def _open(self, split: str) -> ImageSet:
        """Open a split once: each look at a large one asks the disk for every file."""
        if split not in self.opened:
            self.opened[split] = open_image_set(split, self.dataset_dir, split, self.class_names)
        return self.opened[split]

    def _measure(
        self, images: ImageSet, load: Callable[[str], Tensor], form: str, facts: Sequence[ImageFacts] = ()
    ) -> Measured:
        return measure_set(images, load, form, self.extractor, self.cache_dir, self.batch_size, self.device, facts)
