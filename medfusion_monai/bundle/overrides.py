"""Command-line values of a run: reads them as YAML, refuses unknown keys, and repeats the cause of an error last."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

from monai.bundle import ConfigWorkflow
from monai.bundle.reference_resolver import ReferenceResolver

from medfusion_monai.bundle.keys import has_key, read_content, unknown_keys
from medfusion_monai.bundle.root import workflows_in_initialize
from medfusion_monai.runtime.distributed import report_failure
from medfusion_monai.runtime.errors import first_cause, short_message
from medfusion_monai.runtime.values import check_class_names, check_config_paths

TRACKING = ("output_dir", "tracking_uri", "experiment_name", "run_name", "save_execute_config")
"""Keys added by MONAI's runner and its federated client."""


PATHS = ("refuse_copies_of", "pretrained_model", "guidance_model", "decoder")
"""Keys whose values are paths, besides those with these endings."""
PATH_ENDINGS = ("_dir", "_file")
PATHS_BY_NAME = ("other_samples", "other_autoencoders")

WORDS = {"true": True, "false": False, "null": None}
"""Values that the runner passes on as text, and their meaning in YAML."""


def accept_overrides() -> None:
    """Read command-line values as YAML, refuse unknown keys, and repeat errors last.

    The first step of ``initialize``. The runner accepts any key, and a mistyped ``--difusion_steps`` would be noticed
    after days; and it passes on ``--resume false`` as text. A new key within an existing part of the config is
    accepted.

    Raises:
        ValueError: for unknown keys, with the nearest known ones; and for paths and class names that cannot be used.
    """
    repeat_errors_last()
    for workflow in workflows_in_initialize():
        try:
            _refuse_unknown(workflow)
            _check_names(workflow.parser.get())
        except ValueError:
            workflow._is_initialized = False  # a later workflow must not be mistaken for this one
            raise
        changes = {key: WORDS[text.lower()] for key, text in _texts(workflow.parser.get()) if text.lower() in WORDS}
        if changes:
            workflow.parser.update(changes)
            workflow.parser.parse(reset=True)
        if "bundle_root" in workflow.parser:  # this marks the end of its first step
            workflow.parser.get_parsed_content("bundle_root")


def repeat_errors_last() -> None:
    """Repeat the cause of an error below the traceback.

    The runner's last line names the failed expression of the config, and the useful message is far above it.
    """
    sys.excepthook = _show_cause_last


def _refuse_unknown(workflow: ConfigWorkflow) -> None:
    """Raise a ValueError for entries of a workflow's config that are unreferenced and in none of the merged files.

    A file (YAML, or a complete config in JSON) counts as merged if the config has all its entries, because the
    workflow does not list its files.
    """
    config: dict[str, Any] = workflow.parser.get()
    texts = [text for _, text in _texts(config, lists=True)]
    used = {re.split("::|#", key[1:])[0] for text in texts for key in ReferenceResolver.match_refs_pattern(f"@{text}")}
    used |= {re.split("::|#", found)[0] for text in texts for found in re.findall(r"[@%]([\w:#]+)", text)}
    used |= {"_meta_", "imports", *TRACKING, workflow.init_id, workflow.run_id, workflow.final_id}
    rest = [key for key, value in config.items() if key.lstrip("+") not in used and not _is_steps(value)]
    if not rest:
        return
    folder = workflow.config_root_path
    contents = [read_content(path) for path in sorted(folder.glob("*.y*ml"))]
    whole = [read_content(path) for path in sorted(folder.glob("*.json"))]
    contents += [content for content in whole if workflow.init_id in content]
    merged = [content for content in contents if all(has_key(config, key.removeprefix("+")) for key in content)]
    unknown = [key for key in rest if not any(key in content for content in merged)]
    if unknown:
        raise unknown_keys(unknown, [key for key in config if key not in unknown], "--")


def _check_names(config: Mapping[str, Any]) -> None:
    """Check the class names and paths of a config, except those that an expression computes."""
    values = {key: value for key, value in config.items() if not (isinstance(value, str) and value[:1] in ("$", "@"))}
    if values.get("class_names") is not None:
        check_class_names(values["class_names"])
    check_config_paths(**{key: value for key, value in values.items() if key in PATHS or key.endswith(PATH_ENDINGS)})
    for key in PATHS_BY_NAME:
        named = values.get(key)
        check_config_paths(**{f"{key} {name}": path for name, path in named.items()} if isinstance(named, dict) else {})


def _is_steps(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(str(step).startswith("$") for step in value)


def _texts(config: Any, place: str = "", lists: bool = False) -> Iterable[tuple[str, str]]:
    """Yield the texts of a config with their keys, optionally including those in lists."""
    if isinstance(config, str):
        yield place, config
    elif isinstance(config, dict) or (lists and isinstance(config, list)):
        for key, value in config.items() if isinstance(config, dict) else enumerate(config):
            if place or key not in ("_meta_", "imports"):
                yield from _texts(value, f"{place}::{key}" if place else str(key), lists)


def _show_cause_last(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    report_failure(first_cause(error))
    sys.__excepthook__(kind, error, traceback)
    if error.__cause__ is not None:
        print(f"\nmedfusion: error: {short_message(first_cause(error))}", file=sys.stderr)
