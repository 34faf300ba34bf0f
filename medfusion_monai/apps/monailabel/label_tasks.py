"""The tasks that clients of MONAI Label list as models."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from torch import Tensor

import medfusion_monai
from medfusion_monai.apps.monailabel.client_options import Default, read_options
from medfusion_monai.apps.monailabel.label_maps import (
    APPEARS,
    DISAPPEARS,
    MARKED,
    THRESHOLD,
    change_map,
    marked_map,
    smoothed_difference,
)
from medfusion_monai.apps.monailabel.result_files import SUFFIXES, TYPES, read_label, write_image, write_label_map
from medfusion_monai.apps.monailabel.study_files import Study, seen_part, to_study_size, upright_mask
from medfusion_monai.apps.monailabel.study_names import edited_name, synthetic_name
from medfusion_monai.editing.anomaly import ANOMALY_STRENGTH, SMOOTHING, anomaly_map
from medfusion_monai.editing.counterfactuals import GUIDANCE_SCALE, STRENGTH, counterfactual
from medfusion_monai.editing.diffusion_classifier import classify
from medfusion_monai.editing.edit_masks import fitted_mask
from medfusion_monai.editing.inpainting import REPEATS, inpaint
from medfusion_monai.sampling.writer import note_of

if TYPE_CHECKING:
    from medfusion_monai.apps.monailabel.label_app import MedfusionApp

OTHER, FOUND = "other", "as found"
"""Choices of a class: the likeliest one but the study's own; the one that ``classify`` finds. The option is not called
label, which is where MONAI Label puts the file of a label map."""
LABEL_MAP, IMAGE = "label_map", "image"
"""What the file of a result is."""


class Result(NamedTuple):
    """What a task makes of a study.

    Attributes:
        facts: for the client's JSON.
        label_map: uint8 (H, W), upright, as large as the study.
        image: (C, H, W) in [0, 1], likewise.
        new_study: name of the study that the image becomes on request; empty if it never does.
    """

    facts: dict[str, Any]
    label_map: np.ndarray | None = None
    image: Tensor | None = None
    new_study: str = ""


class StudyTask(InferTask):
    """A task on one study.

    Args:
        app: has the model and the studies.
        kind: type by which clients list it.
        labels: names and values of the label map; none for tasks without.
        description: for the user.
        options: table of options, see ``read_options``.
    """

    answer = LABEL_MAP

    def __init__(
        self, app: MedfusionApp, kind: str, labels: Mapping[str, int], description: str, options: Mapping[str, Default]
    ) -> None:
        super().__init__(kind, dict(labels), 2, description, dict(options))
        self.app, self.model, self.options = app, app.model, dict(options)

    def is_valid(self) -> bool:
        """Return True: the model is loaded before the tasks are made."""
        return True

    def __call__(self, request: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
        """Run the task for a request of MONAI Label and return the file of the result and the JSON of the answer.

        Raises:
            ValueError: for a study, a label or options that do not fit.
        """
        start = time.monotonic()
        options = read_options(request, self.options)
        self._check_answer(request)
        study = self.app.open_study(request["image"])
        result = self.make(study, options, request)
        facts: dict[str, Any] = {"label_names": self.labels, **result.facts}
        if options.get("save_image") and result.image is not None:
            facts["study"] = self.app.add_study(result.new_study, result.image, study, self._note(result, options))
        if request.get("save_label") and "suggested_class" in facts:
            self.app.note(request["image_id"], {name: facts[name] for name in ("suggested_class", "prediction")})
        file = self._write(result, study, request, self._note(result, options))
        return file, {**facts, "seconds": round(time.monotonic() - start, 2)}

    def make(self, study: Study, options: dict[str, Any], request: Mapping[str, Any]) -> Result:
        """Return the result for a study."""
        raise NotImplementedError

    def _check_answer(self, request: Mapping[str, Any]) -> None:
        choices = {"result": (LABEL_MAP, IMAGE), "result_extension": SUFFIXES, "result_dtype": tuple(TYPES)}
        for name, known in choices.items():
            given = request.get(name)
            if given and given not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, received {given!r}")

    def _note(self, result: Result, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the file of an image says of it."""
        made = {"weights_sha256": self.model.weights_sha256, "version": medfusion_monai.__version__}
        edit = {"edit": type(self).__name__.lower()} if self.answer_is_of_study else {}
        return note_of({**options, **result.facts, **edit, **made})

    def _write(self, result: Result, study: Study, request: Mapping[str, Any], note: Mapping[str, Any]) -> str | None:
        wanted = request.get("result") or self.answer
        suffix = request.get("result_extension") or ".nrrd"
        if wanted == LABEL_MAP:
            return None if result.label_map is None else write_label_map(result.label_map, study, suffix)
        if result.image is None:
            raise ValueError("this task makes no image: leave result out")
        same_size = tuple(result.image.shape[1:]) == study.size
        own = study if same_size and self.answer_is_of_study else None
        return write_image(result.image, own, suffix, request.get("result_dtype") or "uint8", note)

    answer_is_of_study = True


class Counterfactual(StudyTask):
    """Marks what would differ were the image of another class."""

    def __init__(self, app: MedfusionApp) -> None:
        names = app.model.class_names
        options: dict[str, Default] = {
            "class": [OTHER, *names],
            "own_class": [FOUND, *names],
            "strength": STRENGTH,
            "guidance_scale": GUIDANCE_SCALE,
            "threshold": THRESHOLD,
            "smoothing": SMOOTHING,
            "save_image": False,
        }
        labels = {"appears": APPEARS, "disappears": DISAPPEARS}
        text = "What would be brighter (appears) or darker (disappears), were the image of another class"
        super().__init__(app, InferType.SEGMENTATION, labels, text, options)

    def make(self, study: Study, options: dict[str, Any], request: Mapping[str, Any]) -> Result:
        """Compare the study with its counterfactual."""
        own, label = self._classes(study.image[None], options["own_class"], options["class"])
        settings = {name: options[name] for name in ("strength", "guidance_scale")}
        changed = counterfactual(self.model, study.image[None], label, own, **settings)[0]
        difference = to_study_size(changed - study.image, study)
        seen = seen_part(study)
        shown = smoothed_difference(to_study_size(changed - study.image, study), options["smoothing"])
        label_map = change_map(shown * seen, options["threshold"])
        facts = {"own_class": own, "class": label, "changed_share": round(float((label_map > 0).mean()), 4)}
        image = (study.pixels + difference * seen).clamp(0.0, 1.0)
        return Result(facts, label_map, image, edited_name("counterfactual", request["image_id"], label))

    def _classes(self, images: Tensor, own: str, label: str) -> tuple[str, str]:
        names = self.model.class_names
        if own == FOUND or label == OTHER:
            ranked = classify(self.model, images).log_likelihoods[0].argsort(descending=True).tolist()
            own = names[ranked[0]] if own == FOUND else own
            label = next(names[number] for number in ranked if names[number] != own) if label == OTHER else label
        return own, label


class Anomaly(StudyTask):
    """Marks what differs most from healthy variations of the image."""

    def __init__(self, app: MedfusionApp) -> None:
        options: dict[str, Default] = {
            "healthy": list(app.model.class_names),
            "strength": ANOMALY_STRENGTH,
            "guidance_scale": GUIDANCE_SCALE,
            "smoothing": SMOOTHING,
            "threshold": THRESHOLD,
        }
        text = "What differs most from healthy variations"
        super().__init__(app, InferType.SEGMENTATION, {"anomaly": MARKED}, text, options)

    def make(self, study: Study, options: dict[str, Any], request: Mapping[str, Any]) -> Result:
        """Threshold the anomaly map of the study."""
        settings = {name: options[name] for name in ("strength", "guidance_scale", "smoothing")}
        values = anomaly_map(self.model, study.image[None], options["healthy"], **settings)[0]
        full = to_study_size(values, study) * seen_part(study)
        label_map = marked_map(full[0], options["threshold"])
        return Result({"score": round(float(values.max()), 6), "threshold": options["threshold"]}, label_map, full)


class Classify(StudyTask):
    """Suggests a class by the denoising error under each."""

    def __init__(self, app: MedfusionApp) -> None:
        options: dict[str, Default] = {"temperature": float(app.temperature or 0.0), "num_levels": 32, "seed": 0}
        text = "The class under which the model denoises the image best"
        super().__init__(app, InferType.CLASSIFICATION, {}, text, options)
        self.labels = list(app.model.class_names)

    def make(self, study: Study, options: dict[str, Any], request: Mapping[str, Any]) -> Result:
        """Rank the classes."""
        temperature = options["temperature"] or None
        found = classify(self.model, study.image[None], temperature, options["num_levels"], options["seed"])
        names, scores = self.model.class_names, found.probabilities[0].tolist()
        prediction = [
            {"idx": index, "label": name, "score": round(score, 6)}
            for index, (name, score) in enumerate(zip(names, scores, strict=True))
        ]
        facts = {"suggested_class": names[int(found.labels[0])], "is_calibrated": found.is_calibrated}
        return Result({**facts, "prediction": prediction})


class Inpaint(StudyTask):
    """Samples new content for the region that a client sends as label, or submitted before."""

    def __init__(self, app: MedfusionApp) -> None:
        options: dict[str, Default] = {
            "class": [FOUND, *app.model.class_names],
            "segment": 0,
            "seed": 0,
            "repeats": REPEATS,
            "save_image": True,
        }
        text = "New content for the region of the label that is sent or was submitted"
        super().__init__(app, InferType.SEGMENTATION, {"inpainted": MARKED}, text, options)

    def make(self, study: Study, options: dict[str, Any], request: Mapping[str, Any]) -> Result:
        """Fill the region."""
        place = request.get("label") or self.app.submitted_label(request["image_id"])
        if not place:
            raise ValueError(
                "inpaint needs a label: send one with the request, or submit one for this study before. Values other "
                "than 0 mark what is sampled"
            )
        values = read_label(place)
        marked = upright_mask(values == options["segment"] if options["segment"] else values, study)
        mask = fitted_mask(marked, study.resize, "the label", "the study")
        label = options["class"]
        if label == FOUND:
            label = self.model.class_names[int(classify(self.model, study.image[None]).labels[0])]
        filled = inpaint(self.model, study.image[None], mask[None], label, options["seed"], options["repeats"])[0]
        region = marked[0] & seen_part(study)
        image = torch.where(region, to_study_size(filled, study), study.pixels)
        name = edited_name("inpaint", request["image_id"], label)
        return Result({"class": label}, region.numpy().astype(np.uint8) * MARKED, image, name)


class Reconstruct(StudyTask):
    """Shows what the autoencoder makes of the study."""

    answer = IMAGE

    def __init__(self, app: MedfusionApp) -> None:
        text = "What the autoencoder makes of the image; black where it does not see it"
        super().__init__(app, InferType.OTHERS, {}, text, {"save_image": False})

    def make(self, study: Study, options: dict[str, Any], request: Mapping[str, Any]) -> Result:
        """Encode and decode the study."""
        made = self.model.reconstruct(study.image[None]).cpu()[0]
        error = float((made - study.image).abs().mean())
        image = to_study_size(made, study) * seen_part(study)
        return Result({"mean_error": round(error, 6)}, None, image, edited_name("reconstruct", request["image_id"]))


class Generate(StudyTask):
    """Makes a new study of a class; the label map is empty."""

    answer_is_of_study = False

    def __init__(self, app: MedfusionApp) -> None:
        options: dict[str, Default] = {
            "class": list(app.model.class_names),
            "seed": 0,
            "num_inference_steps": 0,
            "save_image": not app.is_remote,
        }
        text = "A new image of a class, as a study of its own; the open image has no influence"
        super().__init__(app, InferType.SEGMENTATION, {}, text, options)

    def make(self, study: Study, options: dict[str, Any], request: Mapping[str, Any]) -> Result:
        """Sample an image."""
        steps = options["num_inference_steps"]
        choices = {"num_inference_steps": steps} if steps else {}
        image = self.model.sample(options["class"], 1, options["seed"], **choices)
        self.app.refuse_copies(image)
        name = synthetic_name(options["class"], options["seed"])
        return Result({"class": options["class"]}, np.zeros(study.size, np.uint8), image[0], name)


TASKS = {
    "counterfactual": Counterfactual,
    "anomaly": Anomaly,
    "inpaint": Inpaint,
    "generate": Generate,
    "classify": Classify,
    "reconstruct": Reconstruct,
}
"""By the names that clients list. Clients that run a model on each new image take the first one with labels."""
