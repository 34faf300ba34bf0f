"""Image files are read as float arrays; broken files raise."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from medfusion_monai.data.datalist import DataError
from medfusion_monai.data.reading.images import check_images, inspect_images, read_image

GRAY = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5


def _save(path, array, mode=None, **options):
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def test_eight_bit_gray_is_divided_by_255(tmp_path):
    image = read_image(_save(tmp_path / "a.png", GRAY), channels=1)
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image, (GRAY / np.float32(255))[None])


def test_sixteen_bit_gray_keeps_its_depth(tmp_path):
    values = np.array([[0, 1, 257], [32768, 65534, 65535]], np.uint16)
    image = read_image(_save(tmp_path / "a.png", values), channels=1)
    np.testing.assert_array_equal(image[0], (values / 65535).astype(np.float32))


def test_one_bit_image_is_black_and_white(tmp_path):
    image = read_image(_save(tmp_path / "a.png", np.array([[0, 255], [255, 0]], np.uint8), "1"))
    np.testing.assert_array_equal(image, [[[0, 1], [1, 0]]])


def test_palette_image_has_the_colours_of_its_palette(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 51, 255])
    image.putdata([0, 1])
    image.save(tmp_path / "a.png")
    np.testing.assert_allclose(read_image(tmp_path / "a.png", 3)[:, 0], [[1, 0], [0, 0.2], [0, 1]])


@pytest.mark.parametrize(
    ("tag", "turned"),
    [
        (1, GRAY),
        (2, GRAY[:, ::-1]),
        (3, GRAY[::-1, ::-1]),
        (4, GRAY[::-1]),
        (5, GRAY.T),
        (6, np.rot90(GRAY, -1)),
        (7, GRAY[::-1, ::-1].T),
        (8, np.rot90(GRAY)),
    ],
)
def test_orientation_tag_is_applied(tmp_path, tag, turned):
    exif = Image.Exif()
    exif[0x0112] = tag
    image = read_image(_save(tmp_path / "a.png", GRAY, exif=exif))
    np.testing.assert_array_equal(image[0], turned / np.float32(255))


def test_orientation_tag_of_a_jpeg_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = read_image(_save(tmp_path / "a.jpg", GRAY, quality=95))
    turned = read_image(_save(tmp_path / "b.jpg", GRAY, quality=95, exif=exif))
    np.testing.assert_array_equal(turned[0], np.rot90(upright[0], -1))


@pytest.mark.parametrize("suffix", [".tif", ".jpg"])
def test_cmyk_becomes_rgb(tmp_path, suffix):
    cmyk = np.zeros((16, 16, 4), np.uint8) + np.array([40, 90, 200, 25], np.uint8)
    image = Image.fromarray(cmyk, "CMYK")
    image.save(tmp_path / f"a{suffix}", quality=100)
    expected = (255 - np.array([40, 90, 200])) / 255 * (255 - 25) / 255
    np.testing.assert_allclose(read_image(tmp_path / f"a{suffix}", 3)[:, 8, 8], expected, atol=3 / 255)


def test_gray_with_alpha_stays_one_channel(tmp_path):
    pixels = np.array([[[200, 255], [200, 51], [200, 0]]], np.uint8)
    Image.fromarray(pixels, "LA").save(tmp_path / "a.png")
    np.testing.assert_allclose(read_image(tmp_path / "a.png"), [[[200 / 255, 200 / 255 * 0.2, 0]]], rtol=1e-5)


def test_transparent_colour_of_a_palette_is_black(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 51, 255])
    image.putdata([0, 1])
    image.save(tmp_path / "a.png", transparency=0)
    np.testing.assert_allclose(read_image(tmp_path / "a.png", 3)[:, 0], [[0, 0], [0, 0.2], [0, 1]])


def _tiff(path, content, bits, photometric, order="<"):
    """Write a gray TIFF, 2 x 2 pixels, with any bits and photometric interpretation, unlike Pillow."""
    tags = [(256, 3, 2), (257, 3, 2), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 8), (277, 3, 1)]
    tags += [(278, 3, 2), (279, 4, len(content))]
    directory = struct.pack(order + "H", len(tags))
    for tag, kind, value in tags:
        directory += struct.pack(order + "HHI", tag, kind, 1)
        directory += struct.pack(order + "HH", value, 0) if kind == 3 else struct.pack(order + "I", value)
    head = b"II*\0" if order == "<" else b"MM\0*"
    path.write_bytes(head + struct.pack(order + "I", 8 + len(content)) + content + directory + bytes(4))
    return path


@pytest.mark.parametrize("order", ["<", ">"])
def test_sixteen_bit_tiff_is_read_in_either_byte_order(tmp_path, order):
    values = np.array([[0, 1000], [30000, 65535]], f"{order}u2")
    image = read_image(_tiff(tmp_path / "a.tif", values.tobytes(), 16, photometric=1, order=order))
    np.testing.assert_allclose(image[0], values / 65535, atol=1e-7)


@pytest.mark.parametrize("bits", [8, 16])
def test_tiff_whose_zero_is_white_is_inverted(tmp_path, bits):
    values = np.array([[0, 50], [100, 200]]) * (257 if bits == 16 else 1)
    image = read_image(_tiff(tmp_path / "a.tif", values.astype(f"<u{bits // 8}").tobytes(), bits, photometric=0))
    np.testing.assert_allclose(image[0], 1 - np.array([[0, 50], [100, 200]]) / 255, atol=1e-6)


def test_twelve_bit_tiff_is_divided_by_4095(tmp_path):
    image = read_image(_tiff(tmp_path / "a.tif", bytes([0x12, 0x3F, 0xFF, 0x80, 0x00, 0x01]), 12, photometric=1))
    np.testing.assert_allclose(image[0], np.array([[0x123, 0xFFF], [0x800, 1]]) / 4095, atol=1e-7)


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_animation_is_refused(tmp_path, kind):
    frames = [Image.fromarray(GRAY), Image.fromarray(GRAY[::-1].copy())]
    frames[0].save(tmp_path / "a.png", format=kind, save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="2 frames"):
        read_image(tmp_path / "a.png")


def test_opaque_alpha_is_dropped(tmp_path):
    rgba = np.dstack([GRAY, GRAY[::-1], GRAY, np.full_like(GRAY, 255)])
    image = read_image(_save(tmp_path / "a.png", rgba), 3)
    np.testing.assert_array_equal(image, rgba[..., :3].transpose(2, 0, 1) / np.float32(255))


def test_transparency_is_composited_on_black(tmp_path):
    rgba = np.array([[[200, 100, 50, 0], [200, 100, 50, 51]]], np.uint8)
    image = read_image(_save(tmp_path / "a.png", rgba), 3)
    np.testing.assert_allclose(image[:, 0, 0], 0)
    np.testing.assert_allclose(image[:, 0, 1], np.array([200, 100, 50]) / 255 * 0.2, rtol=1e-5)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "TIFF", "PNG"])
def test_content_decides_the_format(tmp_path, kind):
    smooth = np.tile(np.linspace(20, 220, 32).astype(np.uint8), (32, 1))
    image = read_image(_save(tmp_path / "a.png", smooth, format=kind), channels=1)
    np.testing.assert_allclose(image[0], smooth / 255, atol=4 / 255)


def test_rgb_file_with_equal_channels_is_gray(tmp_path):
    path = _save(tmp_path / "a.png", np.dstack([GRAY] * 3))
    np.testing.assert_array_equal(read_image(path, 1), (GRAY / np.float32(255))[None])
    assert read_image(path, 3).shape == (3, 6, 8)
    assert read_image(path).shape == (3, 6, 8)


@pytest.mark.parametrize(("difference", "accepted"), [(2, True), (3, False)])
def test_rounding_of_the_channels_is_gray_but_colour_is_not(tmp_path, difference, accepted):
    path = _save(tmp_path / "a.png", np.dstack([GRAY, GRAY, GRAY + np.uint8(difference)]))
    if accepted:
        assert read_image(path, 1).shape == (1, 6, 8)
    else:
        with pytest.raises(DataError, match="coloured.*3 of 255"):
            read_image(path, 1)


def test_gray_file_for_a_colour_bundle_is_refused(tmp_path):
    with pytest.raises(DataError, match="has 1 channel, but the bundle needs 3"):
        read_image(_save(tmp_path / "a.png", GRAY), 3)


def test_channels_other_than_one_and_three_are_refused(tmp_path):
    with pytest.raises(ValueError, match="channels is 2"):
        read_image(_save(tmp_path / "a.png", GRAY), 2)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("permissive", [False, True])
def test_truncated_file_is_refused_whatever_pillow_is_told(tmp_path, monkeypatch, kind, permissive):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", permissive)
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    path = _save(tmp_path / "a.png", noise, format=kind)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"a\.png.*(truncated|damaged)"):
        read_image(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "0 bytes"),
        (b"patient,label\n1,2\n", r"is not an image \(18 bytes"),
        (b"\x00" * 128 + b"DICM" + b"\x00" * 40, "DICOM"),
        (b"\x00" * 344 + b"n+1\x00", "NIfTI"),
        (b"\x89PNG\r\n\x1a\n" + b"\x00" * 30, "not an image|damaged"),
    ],
)
def test_file_that_is_no_image_says_what_was_found(tmp_path, content, said):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        read_image(tmp_path / "a.png")
    assert str(tmp_path / "a.png") in str(caught.value)


def test_missing_file_and_folder_are_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_image(tmp_path / "a.png")
    with pytest.raises(DataError, match="is a folder"):
        read_image(tmp_path)


def test_path_that_is_too_long_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be opened: File name too long"):
        read_image(tmp_path / ("x" * 300))


def test_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(DataError, match="is a pipe or device"):
        read_image(tmp_path / "a.png")


def test_image_over_pillows_limit_is_not_called_damaged(tmp_path, monkeypatch):
    _save(tmp_path / "a.png", np.zeros((2000, 1001), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10**6)
    with pytest.raises(DataError, match="has too many pixels"):
        read_image(tmp_path / "a.png")


def _empty_png(path, height, width):
    """Write a gray PNG of zeros line by line, which takes little memory."""
    packer = zlib.compressobj(9)
    line = bytes(1 + width // 8)
    content = b"".join(packer.compress(line) for _ in range(height)) + packer.flush()
    _png(path, struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0), content)


def _png(path, header, content):
    chunks = [(b"IHDR", header), (b"IDAT", content), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def test_size_is_compared_with_the_limit_before_decoding(tmp_path, monkeypatch):
    def fail(*_):
        raise AssertionError("the image was decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    _empty_png(tmp_path / "a.png", 8193, 8192)
    with pytest.raises(DataError, match="8193x8192 pixels, more than 67 million"):
        read_image(tmp_path / "a.png")
    _empty_png(tmp_path / "a.png", 8192, 8192)
    with pytest.raises(DataError, match="the image was decoded"):
        read_image(tmp_path / "a.png")


def _typed_tiff(path, content, bits, sample_format):
    """Write a gray TIFF of 2 x 2 pixels whose SampleFormat is 1 (unsigned), 2 (signed) or 3 (float)."""
    tags = {256: 2, 257: 2, 258: bits, 259: 1, 262: 1, 273: 8 + 2 + 12 * 10 + 4, 277: 1, 278: 2, 279: len(content)}
    directory = struct.pack("<H", 10)
    for tag, value in {**tags, 339: sample_format}.items():
        directory += struct.pack("<HHIHH", tag, 3, 1, value, 0)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8) + directory + bytes(4) + content)
    return path


def test_signed_eight_bit_tiff_does_not_wrap(tmp_path):
    values = np.array([[-128, -1], [0, 127]], np.int8)
    path = _typed_tiff(tmp_path / "a.tif", values.tobytes(), 8, 2)
    with pytest.raises(DataError, match="has values from -128 to 127"):
        read_image(path)
    np.testing.assert_allclose(read_image(path, value_range=(-128, 127))[0], (values + 128.0) / 255, atol=1e-6)
    path = _typed_tiff(tmp_path / "a.tif", np.abs(values // 2).tobytes(), 8, 2)
    np.testing.assert_allclose(read_image(path)[0], np.abs(values // 2) / 255, atol=1e-6)


def test_unsigned_32_bit_tiff_does_not_wrap(tmp_path):
    values = np.array([[0, 1000], [2**31, 2**32 - 1]], np.uint32)
    path = _typed_tiff(tmp_path / "a.tif", values.tobytes(), 32, 1)
    with pytest.raises(DataError, match="has values from 0 to 4294967295"):
        read_image(path)
    np.testing.assert_allclose(read_image(path, value_range=(0, 2**32 - 1))[0], values / (2**32 - 1), atol=1e-6)


def test_floating_point_tiff_is_read_with_a_stated_range(tmp_path):
    path = _save(tmp_path / "a.tif", np.array([[-1, 0, 1.5]], np.float32))
    np.testing.assert_allclose(read_image(path, value_range=(-1, 1))[0], [[0, 0.5, 1]])
    path = _save(tmp_path / "a.tif", np.array([[0, np.nan]], np.float32))
    with pytest.raises(DataError, match="not finite"):
        read_image(path, value_range=(0, 1))


def test_file_of_several_frames_is_refused(tmp_path):
    frames = [Image.fromarray(GRAY), Image.fromarray(GRAY[::-1].copy())]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="2 frames"):
        read_image(tmp_path / "a.tif")


def test_floating_point_pixels_are_refused(tmp_path):
    with pytest.raises(DataError, match="floating-point"):
        read_image(_save(tmp_path / "a.tif", GRAY.astype(np.float32)))


def test_check_passes_good_images_and_lists_ten_bad_ones(tmp_path):
    good = [_save(tmp_path / f"{i}.png", GRAY) for i in range(3)]
    check_images(good, channels=1)
    bad = [tmp_path / f"missing_{i}.png" for i in range(12)]
    with pytest.raises(DataError, match="12 of 15 images cannot be used") as caught:
        check_images(good + bad)
    assert str(caught.value).count("does not exist") == 10
    assert "2 more" in str(caught.value)


def _digests(*paths, **options):
    digests, problems = inspect_images(paths, **options)
    assert not problems
    return [digests[str(path)] for path in paths]


def test_equal_pixels_have_equal_digests_whatever_holds_them(tmp_path):
    first, *others = _digests(
        _save(tmp_path / "a.png", GRAY),
        _save(tmp_path / "b.tif", GRAY),
        _save(tmp_path / "c.webp", GRAY, lossless=True),
        _save(tmp_path / "d.png", np.dstack([GRAY] * 3)),
        _save(tmp_path / "e.png", GRAY.astype(np.uint16) * 257),
    )
    assert others == [first] * 4
    colour = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    first, second = _digests(_save(tmp_path / "f.png", colour), _save(tmp_path / "g.webp", colour, lossless=True))
    assert first == second


def test_other_pixels_and_other_shapes_have_other_digests(tmp_path):
    changed = GRAY.copy()
    changed[0, 0] += 1
    images = [GRAY, changed, GRAY.T.copy(), GRAY[:, ::-1].copy(), GRAY.reshape(8, 6), GRAY.reshape(4, 12)]
    digests = _digests(*(_save(tmp_path / f"{index}.png", image) for index, image in enumerate(images)))
    assert len(set(digests)) == len(images)


def test_inspection_gives_digests_of_good_and_reasons_of_bad_files(tmp_path):
    good, bad = _save(tmp_path / "a.png", GRAY), tmp_path / "b.png"
    digests, problems = inspect_images([good, bad])
    assert list(digests) == [str(good)]
    assert list(problems) == [str(bad)]
    assert "does not exist" in problems[str(bad)]


def test_sixteen_bit_colour_is_not_scaled_by_a_stated_range(tmp_path):
    lines = b"".join(b"\0" + struct.pack(">6H", 0, 1000, 4095, 256, 512, 4095) for _ in range(2))
    _png(tmp_path / "a.png", struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0), zlib.compress(lines))
    assert read_image(tmp_path / "a.png").max() == np.float32(15 / 255)
    with pytest.raises(DataError, match="16-bit colour"):
        read_image(tmp_path / "a.png", value_range=(0, 4095))
