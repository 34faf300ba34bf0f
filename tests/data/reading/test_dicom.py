"""DICOM files are read as a viewer shows them; other content is refused without quoting the patient's data."""

import importlib.resources
import io
import logging
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from dicom_files import apply_windowing, save_dicom, save_without_preamble
from PIL import Image
from pydicom import Dataset, dcmread, uid
from pydicom.encaps import encapsulate

import medfusion_monai.data.reading.dicom_decoding as decoding
from medfusion_monai.data.datalist import DataError
from medfusion_monai.data.reading.images import read_image

RAMP = np.linspace(0, 4095, 48).astype(np.uint16).reshape(6, 8)
SAMPLES = importlib.resources.files("pydicom") / "data" / "test_files"


def _dataset(values, photometric="MONOCHROME2", bits=None, **tags):
    """A data set with the pixels; tags whose value is None are left out."""
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = uid.ComputedRadiographyImageStorage, "1.2.3"
    dataset.PatientName, dataset.PatientID, dataset.Modality = "Doe^Jane", "secret-17", "CR"
    dataset.Rows, dataset.Columns = values.shape[:2]
    dataset.SamplesPerPixel = 1 if values.ndim == 2 else 3
    if values.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated = 8 * values.itemsize
    dataset.BitsStored = bits or dataset.BitsAllocated
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    for name, value in tags.items():
        if value is None:
            del dataset[name]
        else:
            setattr(dataset, name, value)
    dataset.PixelData = values.tobytes()
    dataset["PixelData"].VR = "OW"
    return dataset


@pytest.fixture
def read(tmp_path):
    """Read back an image written with these tags."""

    def run(values, photometric="MONOCHROME2", bits=None, syntax=uid.ExplicitVRLittleEndian, **tags):
        return read_image(save_dicom(tmp_path / "a.dcm", _dataset(values, photometric, bits, **tags), syntax))

    return run


def test_without_window_the_lowest_value_is_black_and_the_highest_white(read):
    image = read(RAMP // 2 + 100, bits=12)
    assert (image.dtype, image.shape) == (np.float32, (1, 6, 8))
    values = (RAMP // 2).astype(float)
    np.testing.assert_allclose(image[0], values / values.max(), atol=1e-6)


def test_constant_image_is_black(read):
    np.testing.assert_array_equal(read(np.full((4, 5), 700, np.uint16)), np.zeros((1, 4, 5)))


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", None])
@pytest.mark.parametrize(("centre", "width"), [(2048, 4096), (1000, 300), (500.5, 1001)])
def test_window_is_that_of_pydicom_brought_to_the_unit_range(read, function, centre, width):
    tags = {"WindowCenter": centre, "WindowWidth": width} | ({"VOILUTFunction": function} if function else {})
    expected = apply_windowing(RAMP, _dataset(RAMP, bits=12, **tags)) / 4095
    np.testing.assert_allclose(read(RAMP, bits=12, **tags)[0], expected, atol=1e-6)


def test_first_of_several_windows_counts(read):
    several = read(RAMP, bits=12, WindowCenter=[1000, 3000], WindowWidth=[500, 50])
    np.testing.assert_array_equal(several, read(RAMP, bits=12, WindowCenter=1000, WindowWidth=500))


def test_window_of_width_one_is_a_threshold(read):
    image = read(np.array([[9, 10, 11]], np.uint16), WindowCenter=10, WindowWidth=1)
    np.testing.assert_array_equal(image[0], [[0, 1, 1]])


def test_window_is_in_rescaled_units(read):
    stored = np.array([[0, 50, 100, 150, 200]], np.uint16)
    image = read(stored, RescaleSlope=2, RescaleIntercept=-100, WindowCenter=100, WindowWidth=200)
    # Values -100 ... 300; LINEAR_EXACT would be black at 0 and white at 200, LINEAR differs by half a unit.
    np.testing.assert_allclose(image[0], [[0, 0.0025, 0.505, 1, 1]], atol=3e-3)


def test_negative_slope_inverts(read):
    image = read(RAMP, bits=12, RescaleSlope=-1, RescaleIntercept=4095)
    np.testing.assert_allclose(image[0], 1 - RAMP / 4095, atol=1e-6)


@pytest.mark.parametrize("window", [{}, {"WindowCenter": 1500, "WindowWidth": 900}])
def test_monochrome1_is_the_inverse_of_monochrome2(read, window):
    dark, bright = (read(RAMP, name, bits=12, **window) for name in ("MONOCHROME2", "MONOCHROME1"))
    np.testing.assert_allclose(dark + bright, 1, atol=1e-6)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_not_counted(read, photometric):
    values = RAMP // 2 + 100
    values[0, :3] = 65535
    values[1, 0] = 65000
    image = read(values, photometric, PixelPaddingValue=65535, PixelPaddingRangeLimit=65000)
    inside = np.ones(RAMP.shape, bool)
    inside[0, :3], inside[1, 0] = False, False
    expected = (values - 100.0 - (RAMP[inside] // 2).min()) / (np.ptp(RAMP[inside] // 2))
    expected = 1 - expected if photometric == "MONOCHROME1" else expected
    np.testing.assert_allclose(image[0][inside], expected[inside], atol=1e-6)
    assert not image[0][~inside].any()


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16])
@pytest.mark.parametrize(
    "syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian]
)
def test_any_integer_type_and_uncompressed_syntax_is_read(read, dtype, syntax):
    limits = np.iinfo(dtype)
    values = np.linspace(limits.min, limits.max, 48).astype(dtype).reshape(6, 8)
    expected = (values.astype(float) - limits.min) / (limits.max - limits.min)
    np.testing.assert_allclose(read(values, syntax=syntax)[0], expected, atol=1e-6)


def test_overlay_in_the_unused_bits_does_not_change_values(read):
    overlay = np.where(np.arange(48).reshape(6, 8) % 3, 0, 0x3000).astype(np.uint16)
    np.testing.assert_array_equal(read(RAMP | overlay, bits=12), read(RAMP, bits=12))


def test_big_endian_is_read(tmp_path):
    dataset = _dataset(RAMP, bits=12)
    dataset.PixelData = RAMP.astype(">u2").tobytes()
    np.testing.assert_allclose(
        read_image(save_dicom(tmp_path / "a.dcm", dataset, uid.ExplicitVRBigEndian))[0], RAMP / 4095, atol=1e-6
    )


@pytest.mark.parametrize("as_bytes", [False, True])
@pytest.mark.parametrize(("entries", "bits"), [(4096, 8), (4096, 12), (2000, 16)])
def test_table_of_shades_comes_before_the_window(read, entries, bits, as_bytes):
    shades = ((2**bits - 1) * np.linspace(0, 1, entries) ** 2).astype(np.uint16)
    table = Dataset()
    table.LUTDescriptor = [entries, 50, bits]
    table.LUTData = shades.tobytes() if as_bytes else shades.tolist()
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "OW" if as_bytes else "US"
    image = read(RAMP, bits=12, VOILUTSequence=[table], WindowCenter=10, WindowWidth=5)
    expected = shades[np.clip(RAMP.astype(int) - 50, 0, entries - 1)] / (2**bits - 1)
    np.testing.assert_allclose(image[0], expected, atol=1e-6)


def test_rgb_is_divided_by_its_range(read):
    values = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    np.testing.assert_array_equal(read(values, "RGB"), values.transpose(2, 0, 1) / np.float32(255))


def test_ybr_becomes_rgb(read):
    rgb = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    ybr = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    np.testing.assert_allclose(read(ybr, "YBR_FULL"), rgb.transpose(2, 0, 1) / 255, atol=3 / 255)


@pytest.mark.parametrize("bits", [8, 16])
def test_palette_gives_its_colours(read, bits):
    colours = np.random.default_rng(0).integers(0, 2**bits, (3, 256)).astype(f"u{bits // 8}")
    colours[:, 0] = 2**bits - 1
    tags = {}
    for name, plane in zip(("Red", "Green", "Blue"), colours, strict=True):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, bits]
        tags[f"{name}PaletteColorLookupTableData"] = plane.tobytes()
    index = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
    np.testing.assert_allclose(read(index, "PALETTE COLOR", **tags), colours[:, index] / (2**bits - 1), atol=1e-6)


def test_baseline_jpeg_is_what_pillow_reads(tmp_path):
    smooth = np.tile(np.linspace(20, 220, 64).astype(np.uint8), (64, 1))
    Image.fromarray(smooth).save(tmp_path / "a.jpg", quality=90)
    path = save_dicom(tmp_path / "a.dcm", _packed((tmp_path / "a.jpg").read_bytes(), smooth), uid.JPEGBaseline8Bit)
    expected = read_image(tmp_path / "a.jpg")
    expected = (expected - expected.min()) / np.ptp(expected)
    np.testing.assert_allclose(read_image(path), expected, atol=1e-6)


def _marked(rgb, marker, space="YBR"):
    """A JPEG in YBR or RGB with JFIF's marker, with Adobe's, with components named R, G, B, or with none of these."""
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "JPEG", quality=95, subsampling=0, keep_rgb=space == "RGB")
    start, content = file.getvalue()[:2], file.getvalue()[2:]
    length = 2 + int.from_bytes(content[2:4], "big")
    first, rest = content[:length], content[length:]
    assert first[4:9] == (b"Adobe" if space == "RGB" else b"JFIF\0")  # what Pillow writes
    if marker == "Adobe":
        first = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([space == "YBR"])
    if marker != "names":
        rest = rest.replace(b"R\x11\0G\x11\0B\x11\0", b"\1\x11\0\2\x11\0\3\x11\0").replace(
            b"R\0G\0B\0", b"\1\0\2\0\3\0"
        )
    return start + (first if marker in ("JFIF", "Adobe") else b"") + rest


@pytest.mark.parametrize(
    ("marker", "space", "photometric"),
    [
        ("JFIF", "YBR", "YBR_FULL_422"),
        ("JFIF", "YBR", "RGB"),
        ("Adobe", "YBR", "YBR_FULL_422"),
        ("Adobe", "YBR", "RGB"),
        ("none", "YBR", "YBR_FULL"),
        ("none", "RGB", "RGB"),
        ("Adobe", "RGB", "RGB"),
        ("names", "RGB", "RGB"),
        ("names", "RGB", "YBR_FULL"),
    ],
)
def test_colours_of_a_baseline_jpeg_are_right_whatever_marks_them(tmp_path, marker, space, photometric):
    rgb = np.zeros((16, 24, 3), np.uint8)
    rgb[..., 0], rgb[:, :12, 1], rgb[8:, :, 2] = 200, 120, 60
    dataset = _dataset(rgb, photometric)
    dataset.PixelData = encapsulate([_marked(rgb, marker, space)])
    dataset["PixelData"].VR = "OB"
    image = read_image(save_dicom(tmp_path / "a.dcm", dataset, uid.JPEGBaseline8Bit))
    assert np.abs(image - rgb.transpose(2, 0, 1) / 255).mean() < 0.01


@pytest.mark.parametrize("tags", [{"Rows": 7}, {"BitsAllocated": 16, "BitsStored": 16}])
def test_header_of_another_image_than_the_jpeg_is_refused(tmp_path, tags):
    Image.fromarray(np.zeros((6, 8), np.uint8)).save(tmp_path / "a.jpg")
    dataset = _packed((tmp_path / "a.jpg").read_bytes(), np.zeros((6, 8), np.uint8))
    for name, value in tags.items():
        setattr(dataset, name, value)
    with pytest.raises(DataError, match=r"a\.dcm.*the header does not match a JPEG"):
        read_image(save_dicom(tmp_path / "a.dcm", dataset, uid.JPEGBaseline8Bit))


@pytest.mark.parametrize("copies", [1, 2, 4])
def test_pixels_beyond_those_of_the_header_are_refused(tmp_path, copies):
    values = np.full((6, 8), 9, np.uint8)
    Image.fromarray(values).save(tmp_path / "a.jpg", quality=95)
    dataset = _packed((tmp_path / "a.jpg").read_bytes(), values)
    dataset.PixelData = encapsulate([(tmp_path / "a.jpg").read_bytes()] * copies)
    packed = save_dicom(tmp_path / "a.dcm", dataset, uid.JPEGBaseline8Bit)
    dataset = _dataset(values)
    dataset.PixelData = values.tobytes() * copies
    native = save_dicom(tmp_path / "b.dcm", dataset)
    if copies == 1:
        assert read_image(packed).shape == read_image(native).shape == (1, 6, 8)
        return
    with pytest.raises(DataError, match=f"{copies} compressed frames"):
        read_image(packed)
    with pytest.raises(
        DataError, match=f"{48 * copies} bytes of pixel data, but 6 rows and 8 columns of 1 x 8 bits take"
    ):
        read_image(native)


@pytest.mark.parametrize(
    ("surplus", "is_padding"), [(bytes(1), True), (bytes(7), True), (bytes(9), False), (b"a", False)]
)
def test_up_to_a_row_of_zeros_is_padding(tmp_path, surplus, is_padding):
    dataset = _dataset(np.arange(35, dtype=np.uint8).reshape(5, 7))
    dataset.PixelData += surplus
    path = save_dicom(tmp_path / "a.dcm", dataset)
    if is_padding:
        assert read_image(path).shape == (1, 5, 7)
    else:
        with pytest.raises(DataError, match="5 rows and 7 columns of 1 x 8 bits take 35"):
            read_image(path)


def test_other_number_of_samples_than_the_colours_have_is_refused(tmp_path):
    dataset = _dataset(np.zeros((6, 8, 3), np.uint8), "RGB", SamplesPerPixel=64)
    dataset.PixelData = bytes(6 * 8 * 64)
    with pytest.raises(DataError, match="in RGB with 64 samples per pixel instead of 3"):
        read_image(save_dicom(tmp_path / "a.dcm", dataset))
    dataset = _dataset(np.zeros((6, 8), np.uint8), SamplesPerPixel=3, PlanarConfiguration=0)
    with pytest.raises(DataError, match="in MONOCHROME2 with 3 samples per pixel instead of 1"):
        read_image(save_dicom(tmp_path / "a.dcm", dataset))


def test_size_is_compared_with_the_limit_before_decoding(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "pixel_array", None, raising=False)
    dataset = _dataset(RAMP, Rows=8193, Columns=8192)
    with pytest.raises(DataError, match="8193x8192 pixels, more than 67 million"):
        read_image(save_dicom(tmp_path / "a.dcm", dataset))


def _packed(frame, values):
    dataset = _dataset(values)
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR = "OB"
    return dataset


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("MR_small_RLE.dcm", "MR_small.dcm"),
        ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm"),
        ("MR_small_jp2klossless.dcm", "MR_small.dcm"),
        ("MR_small_bigendian.dcm", "MR_small.dcm"),
        ("SC_rgb_rle.dcm", None),
        ("SC_rgb_jpeg_gdcm.dcm", None),
        ("SC_rgb_gdcm_KY.dcm", None),
    ],
)
def test_lossless_compression_gives_the_uncompressed_pixels(name, same):
    """On pydicom's own samples: JPEG lossless, JPEG-LS, JPEG 2000, RLE."""
    syntax = dcmread(SAMPLES / name).file_meta.TransferSyntaxUID
    if syntax.is_encapsulated and not decoding.has_decoder(syntax):
        pytest.skip(f"no decoder for {syntax.name}: install the extra 'dicom'")
    image = read_image(SAMPLES / name, modalities=["MR", "OT"])
    if same is None:
        np.testing.assert_allclose(image, dcmread(SAMPLES / name).pixel_array.transpose(2, 0, 1) / 255, atol=1e-6)
    else:
        np.testing.assert_array_equal(image, read_image(SAMPLES / same, modalities=["MR"]))


def test_missing_decoder_names_the_syntax_and_the_extra(tmp_path, monkeypatch):
    path = save_dicom(tmp_path / "a.dcm", _packed(b"\xff\xd8" * 9, RAMP), uid.JPEGLSLossless)
    monkeypatch.setattr(decoding, "has_decoder", lambda syntax: False)
    with pytest.raises(DataError, match=r"JPEG-LS Lossless.*no decoder.*pip install pylibjpeg"):
        read_image(path)


def test_video_is_refused_by_the_name_of_its_syntax(tmp_path):
    path = save_dicom(tmp_path / "a.dcm", _packed(b"\0" * 18, RAMP), uid.MPEG2MPML)
    with pytest.raises(DataError, match=r"a\.dcm.*MPEG2"):
        read_image(path)


@pytest.mark.parametrize(
    "modality", ["CR", "DX", "RG", "MG", "RF", "XA", "PX", "IO", "OP", "XC", "GM", "SM", "ES", "OT"]
)
def test_projections_and_photographs_are_accepted(read, modality):
    assert read(RAMP, Modality=modality).shape == (1, 6, 8)


@pytest.mark.parametrize("modality", ["CT", "MR", "PT", "NM", "US", "OPT", "OCT", "SEG", "RTDOSE"])
def test_other_modalities_are_refused_unless_named(tmp_path, modality):
    path = save_dicom(tmp_path / "a.dcm", _dataset(RAMP, Modality=modality))
    with pytest.raises(DataError, match=rf"Modality {modality}; .*add {modality} to --modalities"):
        read_image(path)
    assert read_image(path, modalities=["CR", modality]).shape == (1, 6, 8)


def test_named_modalities_replace_the_usual_ones(read, tmp_path):
    path = save_dicom(tmp_path / "a.dcm", _dataset(RAMP, Modality="DX"))
    with pytest.raises(DataError, match="accepted are CR, MG"):
        read_image(path, modalities=["CR", "MG"])


def test_file_without_modality_is_accepted(read):
    assert read(RAMP, Modality=None).shape == (1, 6, 8)
    assert read(RAMP, Modality="").shape == (1, 6, 8)


@pytest.mark.parametrize("modalities", ["CR", [], [1], [""], 5])
def test_modalities_other_than_a_list_of_names_are_refused(tmp_path, modalities):
    with pytest.raises(ValueError, match="modalities are"):
        read_image(tmp_path / "a.dcm", modalities=modalities)


def test_directory_of_dicom_files_is_named_as_such(tmp_path):
    dataset = _dataset(RAMP, SOPClassUID=uid.MediaStorageDirectoryStorage)
    del dataset.PixelData
    path = save_dicom(tmp_path / "DICOMDIR", dataset)
    header = dcmread(path)
    del header.SOPClassUID
    header.save_as(path)
    with pytest.raises(DataError, match="without pixel data .Media Storage Directory Storage."):
        read_image(path)


def test_several_frames_are_refused(tmp_path):
    dataset = _dataset(RAMP, NumberOfFrames=2)
    dataset.PixelData = RAMP.tobytes() * 2
    with pytest.raises(DataError, match="2 frames. Write one image per file"):
        read_image(save_dicom(tmp_path / "a.dcm", dataset))


def test_file_without_pixels_is_refused(tmp_path):
    dataset = _dataset(RAMP)
    del dataset.PixelData
    with pytest.raises(DataError, match="without pixel data.*Computed Radiography"):
        read_image(save_dicom(tmp_path / "a.dcm", dataset))


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.JPEGBaseline8Bit, uid.RLELossless])
def test_truncated_file_is_refused(tmp_path, keep, syntax):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    dataset = _dataset(noise)
    if syntax == uid.JPEGBaseline8Bit:
        Image.fromarray(noise).save(tmp_path / "a.jpg")
        dataset = _packed((tmp_path / "a.jpg").read_bytes(), noise)
    path = save_dicom(tmp_path / "a.dcm", dataset, uid.ExplicitVRLittleEndian if syntax == uid.RLELossless else syntax)
    if syntax == uid.RLELossless:
        whole = dcmread(path)
        whole.compress(uid.RLELossless)
        whole.save_as(path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(DataError, match=r"a\.dcm"):
        read_image(path)


def test_half_a_jpeg_in_a_whole_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg")
    frame = (tmp_path / "a.jpg").read_bytes()
    path = save_dicom(tmp_path / "a.dcm", _packed(frame[: len(frame) // 2], noise), uid.JPEGBaseline8Bit)
    assert frame[: len(frame) // 2] in path.read_bytes()
    with pytest.raises(DataError, match=r"cannot be decoded \(JPEG Baseline"):
        read_image(path)


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({"WindowCenter": 10, "WindowWidth": 0}, "window width 0 is too small"),
        ({"WindowCenter": 10, "WindowWidth": 5, "VOILUTFunction": "CUBIC"}, "CUBIC"),
        ({"PhotometricInterpretation": "HSV"}, "in HSV, which is not supported"),
        ({"PhotometricInterpretation": None}, "cannot be decoded"),
        ({"Rows": 7}, "cannot be decoded.*96"),
    ],
)
def test_odd_header_is_refused(tmp_path, tags, said):
    with pytest.raises(DataError, match=said):
        read_image(save_dicom(tmp_path / "a.dcm", _dataset(RAMP, **tags)))


@pytest.mark.parametrize("little", [True, False])
def test_file_without_preamble_is_read_when_it_begins_like_dicom(tmp_path, little):
    values = RAMP if little else RAMP.astype(">u2")
    dataset = _dataset(RAMP, bits=12)
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.PixelData = values.tobytes()
    path = save_without_preamble(tmp_path / "a", dataset, little)
    assert path.read_bytes()[128:132] != b"DICM"
    np.testing.assert_allclose(read_image(path)[0], RAMP / 4095, atol=1e-6)


@pytest.mark.parametrize("head", [b"\x08\x00\x05\x00", b"\x02\x00\x00\x00", b"\x00\x08\x00\x05"])
def test_garbage_that_begins_like_dicom_is_refused(tmp_path, head):
    (tmp_path / "a").write_bytes(head + np.random.default_rng(0).bytes(5000))
    with pytest.raises(DataError, match="without its preamble|without pixel data|MediaStorage|Modality"):
        read_image(tmp_path / "a")


def test_no_message_names_the_patient(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    problems = [{"Modality": "CT"}, {"NumberOfFrames": 3}, {"Rows": 9}, {"PhotometricInterpretation": "HSV"}]
    for index, tags in enumerate(problems):
        path = save_dicom(tmp_path / f"{index}.dcm", _dataset(RAMP, **tags))
        with pytest.raises(DataError) as caught:
            read_image(path)
        assert "Doe" not in str(caught.value) + caplog.text
        assert "secret" not in str(caught.value) + caplog.text


def test_odd_values_of_a_header_are_not_warned_of(tmp_path, caplog):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = save_dicom(tmp_path / "a.dcm", _dataset(RAMP, PatientID="x" * 80, NumberOfFrames="1"))
    caplog.set_level(logging.WARNING)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read_image(path)
    assert not caught
    assert not caplog.text


def test_many_threads_read_the_same_pixels():
    names = ("MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_RLE.dcm", "MR_small_implicit.dcm")
    syntaxes = {name: dcmread(SAMPLES / name).file_meta.TransferSyntaxUID for name in names}
    usable = [name for name, syntax in syntaxes.items() if not syntax.is_encapsulated or decoding.has_decoder(syntax)]
    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(lambda name: read_image(SAMPLES / name, modalities=["MR"]), usable * 30))
    assert all(np.array_equal(image, images[0]) for image in images)


def test_pydicom_is_imported_by_the_first_dicom_file_and_not_before(tmp_path):
    """In a new process without pydicom, since MONAI and nibabel import it if available."""
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "a.png")
    program = """
import sys
import medfusion_monai.cli
assert "pydicom" not in sys.modules
sys.modules["pydicom"] = None
import medfusion_monai.bundle.root, medfusion_monai.data, medfusion_monai.training, medfusion_monai.data.reading
assert medfusion_monai.data.reading.images.read_image(sys.argv[1]).shape == (1, 4, 5)
del sys.modules["pydicom"]
assert medfusion_monai.data.reading.images.read_image(sys.argv[2], modalities=["MR"]).shape == (1, 64, 64)
"""
    subprocess.run([sys.executable, "-c", program, tmp_path / "a.png", SAMPLES / "MR_small.dcm"], check=True)
