import threading

import numpy as np
import pytest
import torch
from PIL import Image

from medfusion_monai.evaluation.metrics.feature_cache import Extraction, cached_features
from medfusion_monai.evaluation.metrics.feature_networks import FeatureExtractor


class Corners(FeatureExtractor):
    """Four pixels of an image; counts its images and the largest batch."""

    def __init__(self, sha256="0" * 64):
        super().__init__()
        self.name, self.sha256, self.dimensions, self.resize, self.channels = "corners", sha256, 4, "none", 1
        self.seen, self.largest = 0, 0

    def extract(self, image):
        self.seen += len(image)
        self.largest = max(self.largest, len(image))
        return image[:, 0, ::7, ::7].flatten(1)


def load(path):
    return torch.from_numpy(np.array(Image.open(path), dtype=np.float32) / 255)[None]


def extract(extractor, files, load, cache_dir=None, batch_size=32, preprocessing=""):
    return cached_features(Extraction(extractor, cache_dir, batch_size), files, load, preprocessing)


@pytest.fixture
def files(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8), dtype=np.uint8)
    paths = [tmp_path / f"{index}.png" for index in range(5)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    return paths


@pytest.fixture
def expected(files):
    return np.stack([load(path)[0, ::7, ::7].flatten().numpy() for path in files])


def test_features_of_files_are_in_order(files, expected):
    features = extract(Corners(), files, load, batch_size=2)
    assert features.dtype == np.float32
    np.testing.assert_array_equal(features, expected)


def test_next_batch_is_read_while_one_is_measured_and_no_more(files):
    begun = [threading.Event() for _ in files]
    opened = []

    class Waits(Corners):
        def extract(self, image):
            assert begun[min(self.seen + 2, 4)].wait(timeout=30)  # the first image of the next batch
            return super().extract(image)

    extractor = Waits()

    def read(path):
        opened.append(extractor.seen)
        begun[files.index(path)].set()
        return load(path)

    extract(extractor, files, read, batch_size=2)
    assert extractor.largest == 2
    assert opened[:2] == [0, 0]
    assert all(seen >= place - 3 for place, seen in enumerate(opened))  # measured: all but the batch before


def test_second_time_takes_what_is_kept(files, expected, tmp_path):
    extract(Corners(), files, load, tmp_path / "cache")
    again = Corners()
    np.testing.assert_array_equal(extract(again, files, load, tmp_path / "cache"), expected)
    assert again.seen == 0


def test_renamed_files_are_found_again(files, tmp_path):
    extract(Corners(), files, load, tmp_path / "cache")
    renamed = [path.rename(path.with_name(f"new_{path.name}")) for path in files]
    again = Corners()
    extract(again, renamed, load, tmp_path / "cache")
    assert again.seen == 0


def test_another_order_is_computed(files, expected, tmp_path):
    extract(Corners(), files, load, tmp_path / "cache")
    features = extract(Corners(), files[::-1], load, tmp_path / "cache")
    np.testing.assert_array_equal(features, expected[::-1])


def test_another_content_is_computed(files, expected, tmp_path):
    extract(Corners(), files, load, tmp_path / "cache")
    Image.fromarray(np.full((8, 8), 51, np.uint8)).save(files[2])
    features = extract(Corners(), files, load, tmp_path / "cache")
    np.testing.assert_allclose(features[2], 0.2)
    np.testing.assert_array_equal(features[3:], expected[3:])


@pytest.mark.parametrize(
    ("extractor", "preprocessing"),
    [(Corners("1" * 64), "as they are"), (Corners(), "resized to 4x4")],
    ids=["weights", "preprocessing"],
)
def test_other_settings_are_computed(files, tmp_path, extractor, preprocessing):
    extract(Corners(), files, load, tmp_path / "cache", preprocessing="as they are")
    extract(extractor, files, load, tmp_path / "cache", preprocessing=preprocessing)
    assert extractor.seen == 5


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-40], lambda data: data[:200] + b"?" + data[201:], lambda _: b""]
)
def test_damaged_cache_is_computed_and_written_again(files, expected, tmp_path, damage):
    extract(Corners(), files, load, tmp_path / "cache")
    (kept,) = (tmp_path / "cache").iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(damage(whole))
    np.testing.assert_array_equal(extract(Corners(), files, load, tmp_path / "cache"), expected)
    assert kept.read_bytes() == whole


def test_files_that_change_while_they_are_measured_are_refused(files, tmp_path):
    def load_and_replace(path):
        image = load(path)
        if path == files[-1]:
            Image.new("L", (8, 8), 9).save(files[0])
        return image

    with pytest.raises(ValueError, match="changed while they were measured"):
        extract(Corners(), files, load_and_replace, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.features"))


def test_failure_leaves_nothing_in_the_cache(files, tmp_path):
    files[4].write_bytes(b"no image")
    with pytest.raises(OSError, match="cannot identify image"):
        extract(Corners(), files, load, tmp_path / "cache", batch_size=2)
    assert list((tmp_path / "cache").iterdir()) == []


def test_image_of_another_size_is_named(files):
    Image.fromarray(np.zeros((8, 9), np.uint8)).save(files[4])
    with pytest.raises(ValueError, match=r"4\.png has shape \(1, 8, 9\), but .*0\.png has \(1, 8, 8\)"):
        extract(Corners(), files, load, batch_size=2)


def test_features_that_are_not_finite_are_named(files):
    extractor = Corners()
    extractor.extract = lambda image: 1 / (image[:, 0, ::7, ::7].flatten(1) - load(files[3])[0, 0, 0])
    with pytest.raises(ValueError, match=r"features of .*3\.png by corners are not finite"):
        extract(extractor, files, load, batch_size=2)


def test_missing_file_is_named(files, tmp_path):
    with pytest.raises(ValueError, match=r"image .*no\.png cannot be read: No such file"):
        extract(Corners(), [*files, tmp_path / "no.png"], load, tmp_path / "cache")


def test_no_files_are_refused():
    with pytest.raises(ValueError, match="there are no images"):
        extract(Corners(), [], load)


def test_folder_that_cannot_be_written_is_one_sentence(files, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ValueError, match="cannot store features in .*cache: .*Choose another cache_dir"):
        extract(Corners(), files, load, tmp_path / "cache")
