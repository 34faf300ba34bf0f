"""The table of output formats: what is refused, and when a file is complete."""

from pathlib import Path

import numpy as np
import pytest

from medfusion_monai.sampling.image_formats import FORMATS, ImageFormat, image_format, suffix_of


@pytest.fixture
def npy(monkeypatch):
    """Registers a format for gray images."""
    monkeypatch.setitem(FORMATS, "npy", ImageFormat(".npy", lambda *_: b"", Path.is_file, channels=(1,)))


def test_unknown_format_is_refused_with_those_that_are_known(npy):
    with pytest.raises(ValueError, match="one of png, png16, nifti, dicom, .*npy, received 'jpeg'"):
        image_format("jpeg")


@pytest.mark.parametrize("name", ["png16", "npy"])
def test_format_is_refused_for_channels_that_it_does_not_support(name, npy):
    assert suffix_of(name, channels=1) == FORMATS[name].suffix
    with pytest.raises(
        ValueError, match=f"output_format {name} does not support images of 3 channels: choose png or nifti"
    ):
        suffix_of(name, channels=3)


@pytest.mark.parametrize(("name", "channels"), [(name, each) for name in FORMATS for each in FORMATS[name].channels])
def test_file_is_whole_only_to_its_last_byte(name, channels, tmp_path):
    content = FORMATS[name].encode(np.zeros((channels, 4, 6), np.float32), {"seed": 1})
    path = tmp_path / "image"
    assert not FORMATS[name].is_whole(path)
    for size in (0, 1, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        assert not FORMATS[name].is_whole(path)
    path.write_bytes(content)
    assert FORMATS[name].is_whole(path)
