"""Our networks, schedule and sampler as a model and a scheduler of diffusers, each with a folder of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import ConfigMixin, ModelMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config

from medfusion_monai.networks.described import DescriptionError, build
from medfusion_monai.networks.diffusers_autoencoder import WEIGHTS, misfits_of
from medfusion_monai.runtime.errors import WeightsError


class WithoutPath:
    """Mixin that keeps the folder from which a part was loaded out of the files that are written."""

    def to_json_string(self) -> str:
        """Return the configuration as the text of its file."""
        config = json.loads(super().to_json_string())  # type: ignore[misc]
        return json.dumps({name: config[name] for name in config if name != "_name_or_path"}, indent=2) + "\n"


class DescribedModel(WithoutPath, ModelMixin, ConfigMixin):
    """A network of ours as a model of diffusers; ``network`` is the network itself.

    Args:
        description: class and arguments of the network, as in ``model.json``.

    Raises:
        DescriptionError: for a description that cannot be built.
    """

    @register_to_config
    def __init__(self, description: Mapping[str, Any]) -> None:
        super().__init__()
        self.network = build(description)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the network."""
        return self.network(*args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Load the network from a folder, safetensors alone, and only if all weights fit.

        Raises:
            WeightsError: if configuration or weights are missing or damaged, or do not fit each other.
        """
        place, wants_report = Path(str(pretrained_model_name_or_path)), kwargs.pop("output_loading_info", False)
        kwargs["use_safetensors"] = True
        kwargs["low_cpu_mem_usage"] = kwargs.get("device_map") is not None  # else True needs another package
        try:
            model, report = super().from_pretrained(place, output_loading_info=True, **kwargs)
        except (DescriptionError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
            raise WeightsError(f"{place} cannot be loaded: {error}") from error
        wrong = misfits_of(report)
        if wrong:
            raise WeightsError(f"{place}: {WEIGHTS} does not fit config.json: {wrong}. Fetch both files of one model")
        return (model, report) if wants_report else model


class DescribedScheduler(WithoutPath, SchedulerMixin, ConfigMixin):
    """Noise schedule and sampler of a model as a scheduler of diffusers; the pipeline alone can use it.

    Args:
        schedule: description of the schedule, as in ``model.json``.
        sampler: settings of ``LatentDiffusionSampler``.

    Raises:
        DescriptionError: for a schedule that cannot be built.
    """

    @register_to_config
    def __init__(self, schedule: Mapping[str, Any], sampler: Mapping[str, Any]) -> None:
        self.schedule = build(schedule)
