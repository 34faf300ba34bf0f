"""What Next Sample opens: studies without a label, and generated ones only if they are asked for."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from medfusion_monai.apps.monailabel.study_names import is_made, real_studies


class NextStudy(Strategy):
    """Chooses a study without a label.

    Args:
        description: for the user.
        eligible: returns those of the studies that may be chosen.
        is_random: choose at random among those that were opened longest ago; else take the first by name.
    """

    def __init__(
        self, description: str, eligible: Callable[[Sequence[str]], list[str]], is_random: bool = False
    ) -> None:
        super().__init__(description)
        self.eligible, self.is_random = eligible, is_random

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, str] | None:
        """Return the name of a study, or None if no study is left."""
        studies = sorted(self.eligible(datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels"))))
        if not studies:
            return None
        if not self.is_random:
            return {"id": studies[0]}

        def opened(study: str) -> tuple[float, float]:
            shown = datastore.get_image_info(study).get("strategy", {}).get(request.get("strategy"), {})
            return shown.get("ts", 0), random.random()

        return {"id": min(studies, key=opened)}


def _made(studies: Sequence[str]) -> list[str]:
    return [study for study in studies if is_made(study)]


STRATEGIES = {
    "random": NextStudy("A random study without label, those not opened yet first", real_studies, is_random=True),
    "first": NextStudy("The first study without label", real_studies),
    "synthetic": NextStudy("A generated or edited study, those not opened yet first", _made, is_random=True),
}
"""By the names that clients list."""
