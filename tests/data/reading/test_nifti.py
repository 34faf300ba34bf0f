"""NIfTI files of one 2D image: orientation, range, and what is refused."""

import gzip

import nibabel as nib
import numpy as np
import pytest

from medfusion_monai.data.datalist import DataError
from medfusion_monai.data.reading.images import read_image
from medfusion_monai.sampling.image_formats import nifti_bytes

OURS = np.diag([-1.0, -1.0, 1.0, 1.0])  # x to the patient's left, y to the back


def _save(path, array, affine=OURS, **header):
    image = nib.Nifti1Image(array, affine)
    for name, value in header.items():
        image.header[name] = value
    nib.save(image, path)
    return path


@pytest.mark.parametrize("channels", [1, 3])
def test_written_samples_read_back_exactly(tmp_path, channels):
    image = np.random.default_rng(0).random((channels, 6, 8), np.float32)
    (tmp_path / "a.nii.gz").write_bytes(nifti_bytes(image, {}))
    read = read_image(tmp_path / "a.nii.gz", channels)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, image)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("shape", [(8, 6), (8, 6, 1), (8, 6, 1, 1)])
def test_both_versions_packed_or_not_are_read(tmp_path, name, kind, shape):
    values = np.random.default_rng(0).random(shape, np.float32)
    nib.save(kind(values, OURS), tmp_path / name)
    (tmp_path / name).rename(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 1)[0], values.reshape(8, 6).T)


VIEW = np.arange(48, dtype=np.uint8).reshape(6, 8)  # the expected view: rows down, columns to the right


@pytest.mark.parametrize(
    ("stored", "axes"),
    [
        (VIEW.T, "LPS"),
        (VIEW[::-1].T, "LAS"),
        (VIEW[:, ::-1].T, "RPS"),
        (VIEW[::-1, ::-1].T, "RAS"),
        (VIEW, "PLS"),
        (VIEW[::-1], "ALS"),
        (VIEW.T, "LIP"),
        (VIEW[::-1].T, "LSA"),
        (VIEW.T, "PIR"),
        (VIEW[::-1, ::-1].T, "ASR"),
        (VIEW[::-1], "SPL"),
    ],
)
def test_affine_turns_the_image_as_radiologists_look_at_it(tmp_path, stored, axes):
    ornt = nib.orientations.axcodes2ornt(axes)
    affine = np.zeros((4, 4))
    for column, (row, sign) in enumerate(ornt):
        affine[int(row), column] = 0.7 * sign
    affine[:, 3] = [10, -20, 5, 1]
    assert "".join(nib.aff2axcodes(affine)) == axes
    path = _save(tmp_path / "a.nii", np.ascontiguousarray(stored), affine)
    np.testing.assert_array_equal(read_image(path)[0], VIEW / np.float32(255))


@pytest.mark.parametrize("has_codes", [True, False])
def test_without_an_affine_x_runs_right_and_y_down(tmp_path, has_codes):
    image = nib.Nifti1Image(np.ascontiguousarray(VIEW.T), np.eye(4))
    if not has_codes:
        image.set_sform(None, 0)
        image.set_qform(None, 0)
    nib.save(image, tmp_path / "a.nii")
    np.testing.assert_array_equal(read_image(tmp_path / "a.nii")[0], VIEW / np.float32(255))


@pytest.mark.parametrize("shape", [(8, 6, 3), (8, 6, 1, 3)])
def test_three_values_a_pixel_are_rgb(tmp_path, shape):
    values = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    image = read_image(_save(tmp_path / "a.nii", values), 3)
    np.testing.assert_array_equal(image, values.reshape(8, 6, 3).transpose(2, 1, 0) / np.float32(255))


@pytest.mark.parametrize("names", ["RGB", "RGBA"])
def test_rgb_types_are_colour_and_alpha_is_on_black(tmp_path, names):
    values = np.random.default_rng(0).integers(0, 256, (8, 6, len(names))).astype(np.uint8)
    stored = values.view([(name, "u1") for name in names])[..., 0]
    expected = values[..., :3].transpose(2, 1, 0) / 255
    if names == "RGBA":
        expected = expected * values[..., 3].T / 255
    np.testing.assert_allclose(read_image(_save(tmp_path / "a.nii", stored)), expected, atol=1e-6)


@pytest.mark.parametrize(("dtype", "top"), [(np.uint8, 255), (np.uint16, 65535)])
def test_integers_without_sign_are_divided_by_their_range(tmp_path, dtype, top):
    values = (np.arange(48).reshape(8, 6) * 4).astype(dtype)
    np.testing.assert_allclose(read_image(_save(tmp_path / "a.nii", values))[0], values.T / top, atol=1e-7)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32, np.float64])
def test_other_values_are_stretched_from_lowest_to_highest(tmp_path, dtype):
    values = (np.arange(48).reshape(8, 6) * 20 - 400).astype(dtype)
    expected = np.arange(48).reshape(8, 6).T / 47
    np.testing.assert_allclose(read_image(_save(tmp_path / "a.nii", values))[0], expected, atol=1e-6)


def test_scaled_integers_count_by_their_scaled_values(tmp_path):
    image = nib.Nifti1Image(np.linspace(0, 0.5, 48, dtype=np.float32).reshape(8, 6), OURS)
    image.header.set_data_dtype(np.uint8)
    nib.save(image, tmp_path / "a.nii")
    read = read_image(tmp_path / "a.nii")[0]
    np.testing.assert_allclose(read, np.linspace(0, 0.5, 48).reshape(8, 6).T, atol=0.5 / 255)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_display_range_of_the_header_counts(tmp_path, dtype):
    values = np.arange(48).reshape(8, 6).astype(dtype)
    image = read_image(_save(tmp_path / "a.nii", values, cal_min=10, cal_max=30))
    np.testing.assert_allclose(image[0], np.clip((values.T - 10.0) / 20, 0, 1), atol=1e-6)


@pytest.mark.parametrize("shape", [(8, 6, 5), (8, 6, 2), (8, 6, 3, 3), (8, 6, 1, 20), (8,)])
def test_volumes_are_refused_with_their_shape(tmp_path, shape):
    with pytest.raises(DataError, match=r"NIfTI volume of shape \(8,.*one slice per file"):
        read_image(_save(tmp_path / "a.nii.gz", np.zeros(shape, np.float32)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path, bad):
    values = np.ones((8, 6), np.float32)
    values[1, 2] = bad
    with pytest.raises(DataError, match="not finite"):
        read_image(_save(tmp_path / "a.nii", values))


def test_complex_values_are_refused(tmp_path):
    with pytest.raises(DataError, match="complex"):
        read_image(_save(tmp_path / "a.nii", np.ones((8, 6), np.complex64)))


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("keep", [0.3, 0.6, 0.95])
def test_truncated_file_is_refused(tmp_path, name, keep):
    path = _save(tmp_path / name, np.random.default_rng(0).random((40, 30)))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(DataError, match=r"a\.nii.*truncated or damaged"):
        read_image(path)


def test_half_of_a_pair_is_refused(tmp_path):
    nib.save(nib.Nifti1Pair(VIEW, OURS), tmp_path / "a.img")
    with pytest.raises(DataError, match="NIfTI pair"):
        read_image(tmp_path / "a.hdr")


def test_other_content_packed_by_gzip_is_refused(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(b"patient,label\n" * 99))
    with pytest.raises(DataError, match="is a gzip file without a NIfTI"):
        read_image(tmp_path / "a.nii.gz")


def test_size_is_compared_with_the_limit_before_decompressing(tmp_path):
    header = nib.Nifti1Header()
    header.set_data_shape((8192, 8193))
    header["magic"], header["vox_offset"] = b"n+1", 352
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(header.binaryblock + bytes(188)))
    with pytest.raises(DataError, match="8193x8192 pixels, more than 67 million"):
        read_image(tmp_path / "a.nii.gz")


def test_image_far_from_its_header_is_refused(tmp_path):
    _save(tmp_path / "a.nii", VIEW)
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[108:112] = np.float32(1e9).tobytes()  # vox_offset
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(content))
    with pytest.raises(DataError, match="begins after 1000000000 bytes"):
        read_image(tmp_path / "a.nii.gz")


def test_what_follows_the_image_is_not_decompressed(tmp_path, monkeypatch):
    content = _save(tmp_path / "a.nii", VIEW).read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(content) + gzip.compress(bytes(10**6)))
    lengths, read = [], gzip.GzipFile.read

    def counted(file, size=-1):
        data = read(file, size)
        lengths.append(len(data))
        return data

    monkeypatch.setattr(gzip.GzipFile, "read", counted)
    assert read_image(tmp_path / "a.nii.gz").shape[0] == 1
    assert sum(lengths) < 2000
