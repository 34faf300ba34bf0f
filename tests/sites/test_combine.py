"""``medfusion prepare shared``: one datalist of the packages of several sites, or an error."""

import hashlib
import json
import struct
import zipfile
import zlib

import pytest

from medfusion_monai.cli import main
from medfusion_monai.data.datalist import read_datalist
from medfusion_monai.sites.combine import prepare_shared
from medfusion_monai.sites.package import PackageError, write_package


@pytest.fixture
def rewritten(two, tmp_path):
    """Write the second package again with changed content; with right checksums, unless told otherwise."""

    def write(change, sums=True):
        with zipfile.ZipFile(two[1]) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        old = files.pop("checksums.sha256")
        change(files)
        target = tmp_path / "changed.zip"
        if sums:
            write_package(target, files.items())
            return target
        with zipfile.ZipFile(target, "w") as archive:
            for name, content in {**files, "checksums.sha256": old}.items():
                archive.writestr(name, content)
        return target

    return write


def first_image(files):
    return next(name for name in files if name.endswith(".png"))


def edited(name, **values):
    """Return a change of an entry of a JSON file of a package."""

    def change(files):
        files[name] = json.dumps({**json.loads(files[name]), **values}).encode()

    return change


def test_datalist_has_the_images_of_all_sites_for_training(two, tmp_path, capsys):
    assert main(["prepare", "shared", *map(str, two), "--output", str(tmp_path / "data")]) == 0
    items = read_datalist(tmp_path / "data", "training", ["no_cardiomegaly", "cardiomegaly"])
    assert len(items) == 120
    assert {item["patient"].partition("/")[0] for item in items} == {"site1", "site2"}
    assert [item["label"] for item in items].count(1) == 60
    document = json.loads((tmp_path / "data" / "datalist.json").read_text())
    assert document["counts"]["synthetic"] == 120
    assert [site["images"] for site in document["counts"]["sites"]] == [60, 60]
    assert "images that are marked as synthetic: 120" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["datalist.json", "images"]


def test_all_images_are_a_test_by_an_option(two, tmp_path):
    assert main(["prepare", "shared", *map(str, two), "--test", "--output", str(tmp_path / "data")]) == 0
    assert len(read_datalist(tmp_path / "data", "test")) == 120


def test_part_can_be_held_out_for_the_validation_of_a_bundle(two, tmp_path):
    document = prepare_shared(two, tmp_path / "data", (0.9, 0.1, 0.0))
    assert (len(document["training"]), len(document["validation"])) == (108, 12)


def test_images_are_unpacked_as_they_were_sampled(two, audited, tmp_path, pixels):
    prepare_shared(two, tmp_path / "data")
    unpacked, sampled = pixels(tmp_path / "data" / "images" / "site1"), pixels(audited / "samples")
    assert unpacked.keys() == sampled.keys()
    assert all((unpacked[name] == sampled[name]).all() for name in sampled)


def test_same_call_again_changes_nothing_and_another_is_refused(two, tmp_path):
    first = prepare_shared(two, tmp_path / "data")
    assert prepare_shared(two, tmp_path / "data") == first
    with pytest.raises(ValueError, match="exists and differs from the new datalist"):
        prepare_shared(two, tmp_path / "data", (0.0, 0.0, 1.0))


def test_fewer_than_two_sites_are_refused(two, tmp_path):
    with pytest.raises(ValueError, match=r"1 package\(s\): a datalist of shared images needs those of at least two"):
        prepare_shared(two[:1], tmp_path / "data")
    with pytest.raises(ValueError, match="samples of the same weights .* so they are of one site"):
        prepare_shared([two[0], two[0]], tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_same_samples_twice_are_refused(two, tmp_path):
    with pytest.raises(ValueError, match="60 images are in two packages") as caught:
        prepare_shared([*two, two[1]], tmp_path / "data")
    assert "site2" in str(caught.value)
    assert "site3" in str(caught.value)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"class_names": ["cardiomegaly", "no_cardiomegaly"]}, "has other classes, or their order, than"),
        ({"class_names": ["normal", "effusion"]}, "has other classes, or their order, than"),
        ({"latent_channels": 4}, "has other channels of the latents, than"),
        ({"image": {"size": [16, 24], "channels": 1, "resize_mode": "pad"}}, "has other form of the images"),
        ({"image": {"size": [32, 24], "channels": 1, "resize_mode": "crop"}}, "has other form of the images"),
        ({"format": 2}, "is of format 2, this version reads 1"),
        ({"class_names": "no"}, "package.json is not what medfusion share writes"),
    ],
)
def test_site_with_other_classes_latents_or_preprocessing_is_refused(values, words, two, rewritten, tmp_path):
    changed = rewritten(edited("package.json", **values))
    with pytest.raises(ValueError, match=words):
        prepare_shared([two[0], changed], tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("name", ["audit.json", "LICENSE", "card.md", "datalist.json"])
def test_package_without_one_of_its_files_is_refused(name, two, rewritten, tmp_path):
    changed = rewritten(lambda files: files.pop(name))
    with pytest.raises(PackageError, match=f"has no {name}. Ask the site for it again"):
        prepare_shared([two[0], changed], tmp_path / "data")


def test_changed_image_is_refused_by_its_checksum(two, rewritten, tmp_path):
    def swap(files):
        images = [name for name in files if name.endswith(".png")]
        files[images[0]] = files[images[1]]

    changed = rewritten(swap, sums=False)
    with pytest.raises(PackageError, match="1 files were changed, first images/0_no_cardiomegaly_000000.png"):
        prepare_shared([two[0], changed], tmp_path / "data")
    with pytest.raises(PackageError, match=r"is not the image that its datalist\.json lists"):
        prepare_shared([two[0], rewritten(swap)], tmp_path / "data")
    assert not list((tmp_path / "data").iterdir())


def test_audit_of_other_images_is_refused(two, rewritten, tmp_path):
    def lose(files):
        gone = first_image(files)
        del files[gone]
        datalist = json.loads(files["datalist.json"])
        datalist["training"] = [item for item in datalist["training"] if item["image"] != gone]
        files["datalist.json"] = json.dumps(datalist).encode()

    with pytest.raises(PackageError, match="is not of these images and weights"):
        prepare_shared([two[0], rewritten(lose)], tmp_path / "data")


def with_rate(rate):
    """Return a change of the rate of copies that the audit of a package states."""

    def change(files):
        audit = json.loads(files["audit.json"])
        audit["audit"]["rows"][0]["copy_rate"]["value"] = rate
        files["audit.json"] = json.dumps(audit).encode()

    return change


def test_package_with_more_copies_than_the_rate_given_is_refused(two, rewritten, tmp_path, capsys):
    packages = [str(two[0]), str(rewritten(with_rate(0.05)))]
    command = ["prepare", "shared", *packages, "--output", str(tmp_path / "data")]
    assert main(command) == 2
    assert "5.00% of the images to be copies of training images, more than the 1%" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()
    assert main([*command, "--most-copies", "0.05"]) == 0
    printed = capsys.readouterr().out
    assert "site1: 60 images, 0.00% copies" in printed
    assert "site2: 60 images, 5.00% copies" in printed


@pytest.mark.parametrize("rate", [None, "0", -1, True])
def test_package_without_a_rate_of_copies_is_refused(rate, two, rewritten, tmp_path):
    with pytest.raises(PackageError, match="states no rate of copies"):
        prepare_shared([two[0], rewritten(with_rate(rate))], tmp_path / "data")


def test_image_that_is_not_marked_as_synthetic_is_refused(two, rewritten, tmp_path):
    def unmark(files):
        files[first_image(files)] = files[first_image(files)].replace(b"Synthetic", b"Synthetix")

    with pytest.raises(PackageError, match="images are not"):
        prepare_shared([two[0], rewritten(unmark)], tmp_path / "data")


def test_image_of_another_size_is_refused_before_it_is_decoded(two, rewritten, tmp_path):
    def grow(files):
        name = first_image(files)
        header = b"IHDR" + struct.pack(">II", 60_000, 60_000) + files[name][24:29]
        files[name] = files[name][:12] + header + struct.pack(">I", zlib.crc32(header)) + files[name][33:]

    with pytest.raises(PackageError, match="1 images are not PNG files of 16x24 pixels"):
        prepare_shared([two[0], rewritten(grow)], tmp_path / "data")


@pytest.mark.parametrize("name", ["../outside.png", "/etc/outside.png", "images/../../x.png", "images\\x.png", "x.py"])
def test_names_outside_the_package_are_refused_and_nothing_is_unpacked(name, two, rewritten, tmp_path):
    changed = rewritten(lambda files: files.update({name: b"x"}))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(PackageError, match="1 files that a package cannot have"):
        prepare_shared([two[0], changed], tmp_path / "data")
    assert sorted(tmp_path.rglob("*")) == before


def test_compressed_entry_is_refused_unread(two, tmp_path):
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(two[1]) as archive, zipfile.ZipFile(bomb, "w") as target:
        for name in archive.namelist():
            target.writestr(name, archive.read(name))
        target.writestr("images/1_cardiomegaly_999999.png", bytes(10_000_000), zipfile.ZIP_DEFLATED)
    with pytest.raises(PackageError, match="has compressed or encrypted files"):
        prepare_shared([two[0], bomb], tmp_path / "data")


def test_entries_that_overlap_are_refused_unread(two, tmp_path):
    content = bytearray(two[1].read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 20 : entry + 28] = struct.pack("<II", 900_000_000, 900_000_000)
    (tmp_path / "bomb.zip").write_bytes(content)
    with pytest.raises(PackageError, match="claims to unpack to more than its size"):
        prepare_shared([two[0], tmp_path / "bomb.zip"], tmp_path / "data")


def test_list_of_checksums_that_lacks_a_file_is_refused(two, rewritten, tmp_path):
    changed = rewritten(lambda files: files.update({"images/1_cardiomegaly_999999.png": b"x"}), sums=False)
    with pytest.raises(PackageError, match=r"checksums\.sha256 does not list exactly its files"):
        prepare_shared([two[0], changed], tmp_path / "data")


def test_file_that_is_no_zip_is_refused(two, tmp_path, capsys):
    (tmp_path / "text.zip").write_text("no")
    assert main(["prepare", "shared", str(two[0]), str(tmp_path / "text.zip"), "--output", str(tmp_path / "d")]) == 2
    assert "text.zip: cannot be read as a zip" in capsys.readouterr().err
    assert main(["prepare", "shared", str(two[0]), str(tmp_path / "nowhere"), "--output", str(tmp_path / "d")]) == 2
    assert "nowhere: cannot be read as a zip" in capsys.readouterr().err


def test_checksums_are_those_of_sha256sum(two):
    with zipfile.ZipFile(two[0]) as archive:
        for line in archive.read("checksums.sha256").decode().splitlines():
            digest, _, name = line.partition("  ")
            assert hashlib.sha256(archive.read(name)).hexdigest() == digest
