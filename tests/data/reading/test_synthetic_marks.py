"""Images that say that they are synthetic are found, in every format that this project writes."""

import numpy as np
import pytest
from PIL import Image

from medfusion_monai.cli import main
from medfusion_monai.data.datalist import read_datalist
from medfusion_monai.data.reading.synthetic_marks import SYNTHETIC_DATA, marked_synthetic
from medfusion_monai.sampling.image_formats import FORMATS

NOTE = {"file": "0_a/00001", "label": 0, "class_name": "a", "seed": 3, "weights_sha256": "ab" * 32}


def write(folder, name, seed=0):
    kind = FORMATS[name]
    path = folder / f"{name}_{seed}{kind.suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).random((kind.channels[0], 24, 16), dtype=np.float32)
    path.write_bytes(kind.encode(image, NOTE))
    return path


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_of_ours_is_marked(name, tmp_path):
    path = write(tmp_path, name)
    assert marked_synthetic([path]) == [str(path)]


def test_other_files_are_not_marked(tmp_path):
    pixels = (np.random.default_rng(0).random((24, 16)) * 255).astype(np.uint8)
    for suffix in ("png", "jpg", "tiff"):
        Image.fromarray(pixels).save(tmp_path / f"real.{suffix}")
    from pydicom import dcmread

    header = dcmread(write(tmp_path, "dicom"))
    for value in (None, "NO"):
        del header[SYNTHETIC_DATA]
        if value is not None:
            header.add_new(SYNTHETIC_DATA, "CS", value)
        header.save_as(tmp_path / f"real_{value}.dcm")
        header.add_new(SYNTHETIC_DATA, "CS", "YES")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"0" * 400)
    (tmp_path / "empty.dcm").write_bytes(b"")
    paths = [path for path in tmp_path.iterdir() if path.name != "dicom_0.dcm"]
    assert len(paths) == 7
    assert marked_synthetic([*paths, tmp_path / "missing.png"]) == []


@pytest.fixture
def root(tmp_path):
    """A folder of ten images of each of two classes, one of them generated."""
    for name in ("a", "b"):
        for number in range(10):
            pixels = (np.random.default_rng([number, ord(name)]).random((24, 16)) * 255).astype(np.uint8)
            path = tmp_path / "root" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    write(tmp_path / "root" / "b", "dicom", seed=7)
    return tmp_path / "root"


def test_preparing_refuses_synthetic_images_or_counts_them_on_request(root, tmp_path, capsys):
    command = ["prepare", "folder", "--root", str(root), "--output", str(tmp_path / "out")]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "1 of 21 images are marked as synthetic" in error
    assert "dicom_7.dcm" in error
    assert "--allow-synthetic" in error
    assert not (tmp_path / "out" / "datalist.json").exists()
    assert main([*command, "--allow-synthetic"]) == 0
    assert "images that are marked as synthetic: 1" in capsys.readouterr().out
    splits = [read_datalist(tmp_path / "out", split) for split in ("training", "validation", "test")]
    assert sum(map(len, splits)) == 21
