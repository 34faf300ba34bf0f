"""Datalists of phantoms of all modalities."""

import numpy as np
import pytest
from PIL import Image

from medfusion_monai.data.datalist import DataError, read_datalist
from medfusion_monai.data.reading.images import read_image
from medfusion_monai.demo.phantoms.families import FAMILIES, family_of_classes, prepare_phantoms


@pytest.mark.parametrize("modality", FAMILIES)
def test_prepared_phantoms_are_rounded_pngs_with_a_datalist(modality, tmp_path):
    family = FAMILIES[modality]
    document = prepare_phantoms(tmp_path, num_images=40, size=32, seed=2, modality=modality)
    assert document["counts"]["training"]["images"] == dict.fromkeys(family.class_names, 16)
    item = read_datalist(tmp_path, "training", family.class_names)[0]
    index = int(item["patient"].rpartition("_")[2])
    drawn, _ = family.draw(2 * 1_000_003 + index, item["label"], 32)
    with Image.open(item["image"]) as image:
        assert (image.mode, image.size) == ({1: "L", 3: "RGB"}[len(drawn)], (32, 32))
    assert np.abs(read_image(item["image"], len(drawn)) - drawn).max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("modality", FAMILIES)
def test_class_names_tell_the_modality(modality):
    assert family_of_classes(list(FAMILIES[modality].class_names)) == modality


def test_unknown_classes_and_modality_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"no phantoms of the classes \['a', 'b'\], only of cxr"):
        family_of_classes(["a", "b"])
    with pytest.raises(DataError, match="modality is 'mri'"):
        prepare_phantoms(tmp_path, modality="mri")


def test_other_phantoms_are_not_overwritten_unasked(tmp_path):
    first = prepare_phantoms(tmp_path, num_images=20, size=16)
    assert prepare_phantoms(tmp_path, num_images=20, size=16) == first
    with pytest.raises(DataError, match="--overwrite"):
        prepare_phantoms(tmp_path, num_images=22, size=16)
    assert prepare_phantoms(tmp_path, num_images=22, size=16, overwrite=True) != first


def test_too_few_images_and_equal_class_names_are_refused(tmp_path):
    with pytest.raises(DataError, match="too few"):
        prepare_phantoms(tmp_path, num_images=4)
    with pytest.raises(DataError, match="two different names"):
        prepare_phantoms(tmp_path, class_names=("a", "a"))
