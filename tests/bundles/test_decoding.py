"""How often a run decodes an image: once to check it, and once more to encode it, at most."""

from collections import Counter

import pytest

from medfusion_monai.data.reading import transforms


@pytest.fixture
def decoded(monkeypatch):
    """Counts how often each file is decoded, whoever asks for it."""
    counts, read = Counter(), transforms.read_image

    def count(path, *arguments):
        counts[str(path)] += 1
        return read(path, *arguments)

    for module in ("data.reading.transforms", "training.preflight.image_sample", "data.reading.images"):
        monkeypatch.setattr(f"medfusion_monai.{module}.read_image", count)
    return counts


@pytest.mark.parametrize(("cache_num", "most"), [(5000, 1), (0, 2)])
def test_phase_two_decodes_an_image_at_most_twice(cache_num, most, bundle, trained, dataset_dir, tmp_path, decoded):
    places = {"model_dir": str(tmp_path / "models"), "output_dir": str(tmp_path / "runs")}
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "autoencoder.pt").write_bytes((trained / "models" / "autoencoder.pt").read_bytes())
    bundle("train_diffusion", dataset_dir=str(dataset_dir), cache_num=cache_num, **places)
    assert len(decoded) == 36
    assert set(decoded.values()) == {most}


def test_run_of_both_phases_decodes_an_image_at_most_twice(bundle, dataset_dir, tmp_path, decoded):
    places = {"model_dir": str(tmp_path / "models"), "output_dir": str(tmp_path / "runs")}
    bundle("training", dataset_dir=str(dataset_dir), **places)
    assert len(decoded) == 36
    assert set(decoded.values()) == {1}
