"""The app: MONAI Label's server makes one of it, with the settings that ``medfusion label`` passes."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.strategy import Strategy
from torch import Tensor

import medfusion_monai
from medfusion_monai.apps.monailabel.batches import EveryStudy
from medfusion_monai.apps.monailabel.label_server import opened_model
from medfusion_monai.apps.monailabel.label_tasks import TASKS
from medfusion_monai.apps.monailabel.next_study import STRATEGIES
from medfusion_monai.apps.monailabel.private_files import without_folders
from medfusion_monai.apps.monailabel.remote_studies import open_remote_studies
from medfusion_monai.apps.monailabel.result_files import edited_bytes
from medfusion_monai.apps.monailabel.study_files import Study, read_study
from medfusion_monai.apps.monailabel.study_names import SYNTHETIC
from medfusion_monai.audit.guard import load_guard
from medfusion_monai.data.preparing.splits import DataError
from medfusion_monai.sampling.image_formats import png_bytes

logger = logging.getLogger(__name__)
EXTENSIONS = ("*.dcm", "*.jpeg", "*.tiff", "*.webp", "*.bmp")
"""Files that are studies besides those that MONAI Label takes for it."""


class StudyNotFoundError(DataError):
    """A study that does not exist."""


class MedfusionApp(MONAILabelApp):
    """Edits, classes and new images of a trained model, for studies in a folder or a DICOMweb store.

    Args:
        app_dir: folder of the app.
        studies: folder, or URL of a DICOMweb store.
        conf: ``model``, what ``medfusion_monai.load`` takes; if given ``temperature``, ``refuse_copies_of`` and
            ``user``, see ``start_label_server``; and ``files``, the folder of what clients send, without which no
            request may come with a file.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        self.model = opened_model(conf["model"])
        self.temperature = float(conf["temperature"]) if conf.get("temperature") else None
        guard = conf.get("refuse_copies_of") or None
        self.guard = load_guard(guard, self.model.trained_on, self.model.image_size)
        self.is_remote = studies.startswith(("http://", "https://"))
        super().__init__(
            app_dir,
            studies,
            conf,
            name=f"Medfusion ({', '.join(self.model.class_names)})",
            description="What a generative model makes of an image. Research, not for diagnosis",
            version=medfusion_monai.__version__,
        )

    def init_datastore(self) -> Datastore:
        """Open the studies."""
        settings.MONAI_LABEL_DATASTORE_FILE_EXT = [*settings.MONAI_LABEL_DATASTORE_FILE_EXT, *EXTENSIONS]
        return super().init_datastore()

    def _init_dicomweb_datastore(self) -> Datastore:
        modalities = self.model.info.get("image", {}).get("dicom_modalities")
        return open_remote_studies(self.studies, self.conf.get("user") or None, modalities)

    def init_infers(self) -> dict[str, InferTask]:
        """Return the tasks by name."""
        return {name: make(self) for name, make in TASKS.items()}

    def init_strategies(self) -> dict[str, Strategy]:
        """Return what Next Sample can choose by."""
        return dict(STRATEGIES)

    def init_batch_infer(self) -> EveryStudy:
        """Return the batch inference."""
        return EveryStudy()

    def infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Run a task.

        Raises:
            ValueError: for an unknown task, a study that does not exist, or what the task refuses.
        """
        model, name = str(request.get("model")), str(request.get("image") or "")
        if model not in self._infers:
            raise ValueError(f"model {model!r} is unknown: choose one of {', '.join(self._infers)}")
        own: dict[str, Any] = {"model": model, "image": name, "image_id": name}
        if name not in self.datastore().list_images():
            self._refuse_path(name)
            own["image_id"] = "upload"
        if request.get("label") and not self._is_sent(Path(str(request["label"]))):
            raise ValueError("label must be sent as a file: leave it out of the parameters")
        if not self._infers[model].labels or model == "classify":
            own["save_label"] = bool(request.get("save_label")) and model == "classify"
        try:
            return super().infer({**request, **own}, datastore)
        except ValueError as error:
            error.args = (self.public(str(error)), *error.args[1:])
            raise

    def public(self, text: str) -> str:
        """Return a text for clients, who need not know where the files of the server lie."""
        return without_folders(text, [self.app_dir, self.studies])

    def _refuse_path(self, name: str) -> None:
        """Refuse names that are neither of a study nor of a file that a client sent, e.g. of a file of the server."""
        if not name or not self._is_sent(Path(name)):
            raise StudyNotFoundError(f"study {name!r} does not exist: choose one that /datastore/?output=all lists")

    def _is_sent(self, path: Path) -> bool:
        """Return whether a path is a file that MONAI Label wrote for a client."""
        folders = filter(None, (self.conf.get("files"), settings.MONAI_LABEL_SESSION_PATH))
        place = path.resolve()
        return place.is_file() and any(Path(folder).resolve() in place.parents for folder in folders)

    def open_study(self, path: str) -> Study:
        """Read a study."""
        return read_study(path, self.model)

    def submitted_label(self, study: str) -> str:
        """Return the file of the label that a user submitted for a study; empty if there is none."""
        if self.is_remote:
            return ""
        return self.datastore().get_label_uri(study, DefaultLabelTag.FINAL)

    def add_study(self, name: str, image: Tensor, source: Study, note: Mapping[str, Any]) -> str:
        """Add an image (C, H, W) in [0, 1] to the studies, marked as synthetic or edited, and return its name.

        Raises:
            ValueError: for studies in a DICOMweb store, or if there is another image of this name.
        """
        if self.is_remote:
            raise ValueError(
                "save_image cannot add studies to a DICOMweb store: set result to image, or send samples by "
                "medfusion send"
            )
        content, suffix = (
            (png_bytes(image.numpy(), note), ".png")
            if name.startswith(SYNTHETIC)
            else edited_bytes(image, source, note)
        )
        if name in self.datastore().list_images():
            if Path(self.datastore().get_image_uri(name)).read_bytes() == content:
                return name
            raise ValueError(f"study {name} exists and shows another image: remove it, or choose other options")
        with tempfile.TemporaryDirectory() as folder:
            file = os.path.join(folder, f"{name}{suffix}")
            Path(file).write_bytes(content)
            return self.datastore().add_image(name, file, {"made_by": "medfusion_monai"})

    def note(self, study: str, facts: Mapping[str, Any]) -> None:
        """Add facts to what the studies' store knows of a study."""
        if study in self.datastore().list_images():
            self.datastore().update_image_info(study, dict(facts))

    def refuse_copies(self, images: Tensor) -> None:
        """Raise a ValueError if an image (B, C, H, W) is too near to a training image, by the guard if there is one."""
        if self.guard is not None and bool(torch.as_tensor(self.guard.check(images).copies).any()):
            raise ValueError("this image is too near to a training image and is not shown: choose another seed")
