"""What the page says of the copy guard's verdicts."""

import pytest

pytest.importorskip("nicegui", reason="needs the extra studio")

from medfusion_monai.studio.pages.copy_check import described


def test_flagged_images_are_named_by_their_numbers():
    assert "2 images may be copies of training images: number 2, 3. Look" in described([False, True, True])


def test_images_without_copies_are_counted():
    assert described([False]).startswith("Copy guard: no copy of a training image among 1 image,")
