"""The film of an interpolation: frames, times, marks."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from medfusion_monai.data.reading.synthetic_marks import marked_synthetic
from medfusion_monai.studio.film import film_bytes


def frames_of(content):
    """Return the pixels and times of a film."""
    with Image.open(io.BytesIO(content)) as film:
        shown = [(np.asarray(frame).copy(), frame.info["duration"]) for frame in ImageSequence.Iterator(film)]
    return [pixels for pixels, _ in shown], [time for _, time in shown]


@pytest.mark.parametrize("channels", [1, 3])
def test_film_runs_forth_and_back(channels):
    frames = torch.rand(4, channels, 8, 12, generator=torch.Generator().manual_seed(0))
    pixels, times = frames_of(film_bytes(frames, {}, milliseconds=100))
    expected = (frames * 255).round().to(torch.uint8).movedim(1, -1).squeeze(-1).numpy()
    for at, frame in enumerate([0, 1, 2, 3, 2, 1]):
        np.testing.assert_array_equal(pixels[at], expected[frame])
    assert times == [300, 100, 100, 300, 100, 100]


def test_film_repeats_without_end():
    with Image.open(io.BytesIO(film_bytes(torch.rand(2, 1, 8, 8), {}))) as film:
        assert film.info["loop"] == 0


def test_film_of_one_frame_is_refused():
    with pytest.raises(ValueError, match="frames must be .* at least 2"):
        film_bytes(torch.rand(1, 1, 8, 8), {})


@pytest.mark.parametrize(("note", "says"), [({"label": 1}, "no real patient"), ({"edit": "x"}, "may show a real")])
def test_film_is_marked_as_generated_or_edited(tmp_path, note, says):
    path = tmp_path / "film.png"
    path.write_bytes(film_bytes(torch.rand(3, 1, 8, 8), note))
    assert marked_synthetic([path]) == [str(path)]
    with Image.open(path) as film:
        assert says in film.info["Synthetic"]
