"""Batch inference: one task on all studies, of which one that fails does not end the others."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.batch_infer import BatchInferTask

from medfusion_monai.apps.monailabel.study_names import real_studies

logger = logging.getLogger(__name__)


class EveryStudy(BatchInferTask):
    """Runs a task on all studies but those that the app made."""

    def get_images(self, request: dict[str, Any], datastore: Datastore) -> list[str]:
        """Return the names of the studies."""
        return real_studies(super().get_images(request, datastore))

    def __call__(self, request: dict[str, Any], datastore: Datastore, infer: Callable[..., Any]) -> dict[str, Any]:
        """Return the result, or the ``error``, of each study by name."""

        def run(one: dict[str, Any], store: Datastore) -> dict[str, Any]:
            try:
                return infer(one, store)
            except ValueError as error:
                logger.warning("%s: %s", one["image"], error)
                return {"error": str(error)}

        several = bool(request.get("multi_gpu", True)) and torch.cuda.is_available()
        return super().__call__({**request, "multi_gpu": several}, datastore, run)
