import csv
import json
import os

import numpy as np
import pytest
from PIL import Image

from medfusion_monai.data.datalist import DataError
from medfusion_monai.demo.phantoms.families import prepare_phantoms
from medfusion_monai.evaluation.image_form import common_form, content_sha256, inspect_set, refuse_changed
from medfusion_monai.evaluation.image_set import open_image_set
from medfusion_monai.sampling.manifest import RowList


def write_images(folder, number=3, size=(8, 8), channels=1, seed=0, suffix=".png"):
    """Write noise images as PNG and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    paths = []
    for index in range(number):
        pixels = rng.integers(0, 256, (*size, channels), dtype=np.uint8)
        paths.append(folder / f"{index}{suffix}")
        Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(paths[-1], format="PNG")
    return paths


def form_of(size=None, **folders):
    return common_form({name: inspect_set(open_image_set(name, folder)) for name, folder in folders.items()}, size)


def test_folder_without_classes_is_one_set(tmp_path):
    write_images(tmp_path / "s", 4)
    (tmp_path / "s" / "notes.txt").write_text("made by a GAN")
    images = open_image_set("GAN", tmp_path / "s")
    assert [item["label"] for item in images.items] == [None] * 4
    assert (images.class_names, images.counts(), images.indices("a")) == ([], {}, [])


def test_subfolders_are_classes(tmp_path):
    write_images(tmp_path / "s" / "b", 2)
    write_images(tmp_path / "s" / "a" / "deeper", 3)
    images = open_image_set("GAN", tmp_path / "s")
    assert images.counts() == {"a": 3, "b": 2}
    assert [images.paths[index].split("/")[-2] for index in images.indices("b")] == ["b", "b"]


def test_class_named_like_a_formula_is_text_in_a_manifest_and_read_back(tmp_path):
    paths = write_images(tmp_path / "s", 2)
    columns = ["file", "label", "class_name", "seed"]
    rows = [[path.name, label, name, -1] for label, (path, name) in enumerate(zip(paths, ["=a", "-b"], strict=True))]
    RowList(tmp_path / "s", "manifest.csv").append([dict(zip(columns, row, strict=True)) for row in rows], columns)
    assert (tmp_path / "s" / "manifest.csv").read_text().splitlines()[1:] == [f"{paths[0].name},0,'=a,-1",
                                                                              f"{paths[1].name},1,'-b,-1"]  # fmt: skip
    assert open_image_set("GAN", tmp_path / "s").class_names == ["=a", "-b"]


def test_manifest_gives_the_classes_of_samples(tmp_path):
    paths = write_images(tmp_path / "s", 3)
    write_images(tmp_path / "s", 1, suffix="_left_by_another_run.png")
    with open(tmp_path / "s" / "manifest.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "label", "class_name", "seed"])
        rows.writerows([[path.name, label, name, 0] for path, label, name in zip(paths, (1, 0, 1), "bab", strict=True)])
    images = open_image_set("ours", tmp_path / "s")
    assert images.counts() == {"a": 1, "b": 2}
    paths[1].unlink()
    with pytest.raises(DataError, match="1 of 3 samples of the manifest do not exist"):
        open_image_set("ours", tmp_path / "s")


def test_prepared_data_gives_the_split_that_is_asked_for(tmp_path):
    prepare_phantoms(tmp_path, num_images=40, size=16)
    assert len(open_image_set("reference", tmp_path).items) == 4  # there is no reference batch: the test split
    assert len(open_image_set("training", tmp_path, "training").items) == 32
    with pytest.raises(DataError, match="split 'reference'"):
        open_image_set("reference", tmp_path, "reference")


def test_datalist_without_class_names_calls_label_k_k(tmp_path):
    paths = write_images(tmp_path, 4)
    entries = [{"image": path.name, "label": label} for path, label in zip(paths, (10, 2, 2, 0), strict=True)]
    (tmp_path / "datalist.json").write_text(json.dumps({"training": entries[:1], "reference": entries}))
    for split, counts in (("reference", {"0": 1, "2": 2, "10": 1}), ("training", {"10": 1})):
        images = open_image_set(split, tmp_path, split)
        assert {name: count for name, count in images.counts().items() if count} == counts
        assert images.indices("10") == [0]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "contains no images"),
        (["a/1.png", "b/"], r"classes \['b'\] have no images"),
        (["a/1.png", "b/2.png", "3.png"], "1 images are beside the sub-folders"),
    ],
)
def test_folder_that_is_no_set_is_refused(names, words, tmp_path):
    for name in names:
        path = tmp_path / "s" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if name.endswith("/") else Image.new("L", (8, 8)).save(path)
    (tmp_path / "s").mkdir(exist_ok=True)
    with pytest.raises(DataError, match=words):
        open_image_set("GAN", tmp_path / "s")
    with pytest.raises(DataError, match="GAN: .* is not a folder"):
        open_image_set("GAN", tmp_path / "missing")


def test_empty_text_is_not_the_working_directory(tmp_path, monkeypatch):
    write_images(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="GAN: '' is not a folder"):
        open_image_set("GAN", "")


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe"], ids=["cut off", "list", "not UTF-8"])
def test_damaged_datalist_is_named(content, tmp_path):
    (tmp_path / "datalist.json").write_bytes(content)
    with pytest.raises(DataError, match=r"datalist\.json: .*Write it again with `medfusion prepare`"):
        open_image_set("reference", tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"file,label\n0.png,0\n", "lists no samples with file, label and class_name"),
        (b"file,label,class_name\n0.png,0\n", "lists no samples with file, label and class_name"),
        (b"\xff\xfe\x00", "cannot be read as CSV"),
        (b"file,label,class_name\n0.png,0,a\n1.png,0,b\n", r"do not match one to one: \[\(0, 'a'\), \(0, 'b'\)\]"),
        (b"file,label,class_name\n0.png,0,a\n1.png,1,a\n", r"do not match one to one: \[\(0, 'a'\), \(1, 'a'\)\]"),
    ],
    ids=["no names", "short rows", "not UTF-8", "two names", "two labels"],
)
def test_manifest_that_says_no_classes_is_refused(content, words, tmp_path):
    write_images(tmp_path)
    (tmp_path / "manifest.csv").write_bytes(content)
    with pytest.raises(DataError, match=words):
        open_image_set("ours", tmp_path)


def test_files_that_change_after_their_inspection_are_told(tmp_path):
    paths = write_images(tmp_path / "s")
    images = open_image_set("GAN", tmp_path / "s")
    facts = inspect_set(images)
    refuse_changed(images, facts)
    paths[0].unlink()
    os.utime(paths[2], ns=(0, 0))
    with pytest.raises(DataError, match=r"(?s)GAN: 2 of 3 images were changed or removed.*0\.png\n.*2\.png\nRun"):
        refuse_changed(images, facts)


def test_split_of_a_plain_folder_is_refused(tmp_path):
    write_images(tmp_path / "s")
    with pytest.raises(DataError, match="no split 'test'"):
        open_image_set("GAN", tmp_path / "s", "test")


def test_sets_of_one_size_are_compared_as_they_are(tmp_path):
    write_images(tmp_path / "a")
    write_images(tmp_path / "b", seed=1)
    form = form_of(a=tmp_path / "a", b=tmp_path / "b")
    assert (form.size, form.channels, form.resized) == ((8, 8), 1, False)
    assert form.load(str(tmp_path / "a" / "0.png")).shape == (1, 8, 8)


def test_gray_files_with_three_channels_are_gray(tmp_path):
    write_images(tmp_path / "a")
    (tmp_path / "b").mkdir()
    for index in range(3):
        with Image.open(tmp_path / "a" / f"{index}.png") as image:
            image.convert("RGB").save(tmp_path / "b" / f"{index}.png")
    form = form_of(a=tmp_path / "a", b=tmp_path / "b")
    assert form.channels == 1
    assert (form.load(str(tmp_path / "b" / "0.png")) == form.load(str(tmp_path / "a" / "0.png"))).all()


def test_several_sizes_are_refused_unless_one_is_named(tmp_path):
    write_images(tmp_path / "a")
    write_images(tmp_path / "b", size=(16, 8))
    folders = {"real": tmp_path / "a", "GAN": tmp_path / "b"}
    with pytest.raises(DataError, match=r"real: 8x8 \(3\); GAN: 16x8 \(3\)"):
        form_of(**folders)
    form = form_of(size=[4, 4], **folders)
    assert form.load(str(tmp_path / "b" / "0.png")).shape == (1, 4, 4)


@pytest.mark.parametrize(
    ("reference", "other", "words"),
    [
        ((1,), (3,), r"GAN: is coloured \(3 of 3 images\), but real is gray"),
        ((3,), (1,), r"GAN: is gray \(3 of 3 files have one channel\), but real is coloured"),
        ((1,), (1, 3), r"GAN: mixes gray and coloured images \(3 of 6 images\), but real is gray"),
        ((1, 3), (3,), r"real: mixes gray and coloured images"),
    ],
)
def test_gray_is_not_compared_with_colour(reference, other, words, tmp_path):
    for name, kinds in (("real", reference), ("GAN", other)):
        for channels in kinds:
            write_images(tmp_path / name, channels=channels, suffix=f"_{channels}.png")
    with pytest.raises(DataError, match=words):
        form_of(real=tmp_path / "real", GAN=tmp_path / "GAN")


def test_a_single_image_and_constant_images_are_refused(tmp_path):
    write_images(tmp_path / "real")
    write_images(tmp_path / "one", 1)
    with pytest.raises(DataError, match="GAN: contains 1 image"):
        form_of(real=tmp_path / "real", GAN=tmp_path / "one")
    for index in range(3):
        Image.new("L", (8, 8), 40 * index).save(tmp_path / "one" / f"{index}.png")
    with pytest.raises(DataError, match="GAN: each of its 3 images has a single colour"):
        form_of(real=tmp_path / "real", GAN=tmp_path / "one")


def test_truncated_file_is_named(tmp_path):
    paths = write_images(tmp_path / "s", size=(64, 64))
    paths[1].write_bytes(paths[1].read_bytes()[:900])
    with pytest.raises(DataError, match=r"GAN: 1 of 3 images cannot be used:\n.*1\.png: cannot be decoded"):
        inspect_set(open_image_set("GAN", tmp_path / "s"))


def test_checksum_of_a_set_is_of_its_pixels(tmp_path):
    paths = write_images(tmp_path / "a")
    (tmp_path / "b").mkdir()
    for number, path in enumerate(reversed(paths)):
        with Image.open(path) as image:
            image.save(tmp_path / "b" / f"{number}.tif")
    sums = [content_sha256(inspect_set(open_image_set("set", tmp_path / name))) for name in "ab"]
    assert sums[0] == sums[1]
    Image.new("L", (8, 8)).save(tmp_path / "b" / "0.tif")
    assert content_sha256(inspect_set(open_image_set("set", tmp_path / "b"))) != sums[0]
