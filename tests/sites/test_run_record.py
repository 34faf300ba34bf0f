"""A federated run is continued by the settings that it was begun with, or not at all."""

import pytest

from medfusion_monai.sites.federation import FederationError
from medfusion_monai.sites.run_record import RECORD, keep_to_run

SETTINGS = {"rounds": 2, "steps": 10, "sites": ["a", "b"], "model": {"image_size": [32, 32]}}


def test_same_settings_continue_a_run(tmp_path):
    keep_to_run(tmp_path, SETTINGS)
    (tmp_path / "diffusion.pt").touch()
    keep_to_run(tmp_path, SETTINGS)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rounds": 4}, "rounds was 2, now it is 4"),
        ({"steps": 20}, "steps was 10, now it is 20"),
        ({"sites": ["a", "c"]}, r'sites was \["a", "b"\], now it is \["a", "c"\]'),
        ({"model": {"image_size": [64, 64]}}, r"model.image_size was \[32, 32\], now it is \[64, 64\]"),
    ],
)
def test_other_settings_are_refused_with_both_values(changes, words, tmp_path):
    keep_to_run(tmp_path, SETTINGS)
    with pytest.raises(FederationError, match=f"has a run with other settings: {words}. Continue it with its own"):
        keep_to_run(tmp_path, {**SETTINGS, **changes})
    keep_to_run(tmp_path, SETTINGS)


def test_results_of_unknown_settings_are_refused(tmp_path):
    (tmp_path / "diffusion.pt").touch()
    with pytest.raises(FederationError, match=r"has diffusion.pt, but no run.json .*: choose another --output"):
        keep_to_run(tmp_path, SETTINGS)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_damaged_record_is_refused(content, tmp_path):
    (tmp_path / RECORD).write_text(content)
    with pytest.raises(FederationError, match="restore it, or choose another --output"):
        keep_to_run(tmp_path, SETTINGS)
