"""DICOM files of samples and edits, checked by dicom-validator against the tables in ``standard_tables``.

``standard_tables`` says of which editions of the standard these are, and what is therefore not checked.
"""

import logging
from io import BytesIO

import numpy as np
import pytest
from dicom_notes import SAMPLE, cases
from pydicom import dcmread
from pydicom.datadict import keyword_for_tag

from medfusion_monai.sampling.dicom_format import KINDS
from medfusion_monai.sampling.image_formats import FORMATS

for package in ("dicom_standard", "highdicom"):
    pytest.importorskip(package, reason="make test-dicom installs it")
of_files = pytest.importorskip("dicom_validator.validator.dicom_file_validator", reason="make test-dicom installs it")
of_headers = pytest.importorskip("dicom_validator.validator.iod_validator", reason="make test-dicom installs it")

pytestmark = pytest.mark.slow  # the parsing of some thousand texts takes about 18 seconds


@pytest.fixture(scope="module")
def tables():
    """The tables of our storage classes."""
    from standard_tables import dicom_info  # which imports dicom-validator

    return dicom_info([kind.sop_class for kind in KINDS.values()])


def encode(name, note=SAMPLE, channels=None):
    return FORMATS[name].encode(np.full((channels or KINDS[name].channels[0], 9, 7), 0.5, np.float32), note)


def findings(result):
    """Return what was found, as triples of the module, the keywords down to the attribute, and the kind of error."""
    assert result.status in (of_headers.Status.Passed, of_headers.Status.Failed), "the class is known"
    return [
        (module, "/".join(map(keyword_for_tag, (*(tag.parents or ()), tag.tag))), error.code.name)
        for module, errors in result.module_errors.items()
        for tag, error in errors.items()
    ]


def findings_in(file, tables):
    return findings(of_headers.IODValidator(file, tables, log_level=logging.CRITICAL).validate())


@pytest.mark.parametrize(("name", "channels"), [(name, each) for name in KINDS for each in KINDS[name].channels])
@pytest.mark.parametrize("case", cases("dicom"))
def test_validator_finds_no_error(name, channels, case, tables, tmp_path):
    path = tmp_path / "image.dcm"
    path.write_bytes(encode(name, cases(name)[case], channels))
    (result,) = of_files.DicomFileValidator(tables, log_level=logging.CRITICAL).validate(path).values()
    assert findings(result) == []


def remove(*keywords):
    def change(file):
        for keyword in keywords:
            del file[keyword]

    return change


def give(**values):
    def change(file):
        for keyword, value in values.items():
            setattr(file, keyword, value)

    return change


def forget_meaning(file):
    del file.AnatomicRegionSequence[0].CodeMeaning


@pytest.mark.parametrize(
    ("name", "change", "expected"),
    [
        ("dicom", remove("ConversionType"), ("sc-equipment", "ConversionType", "TagMissing")),
        ("dicom", remove("PatientID"), ("patient", "PatientID", "TagMissing")),
        ("dicom_dx", give(Rows=None), ("image-pixel", "Rows", "TagEmpty")),
        ("dicom_dx", remove("ImagerPixelSpacing"), ("dx-detector", "ImagerPixelSpacing", "TagMissing")),
        (
            "dicom_dx",
            give(PresentationIntentType="FOR FUN"),
            ("dx-series", "PresentationIntentType", "EnumValueNotAllowed"),
        ),
        ("dicom_dx", remove("WindowCenter"), ("voi-lut", "WindowCenter", "TagMissing")),
        ("dicom_dx", forget_meaning, ("dx-anatomy-imaged", "AnatomicRegionSequence/CodeMeaning", "TagMissing")),
        ("dicom_op", remove("PlanarConfiguration"), ("image-pixel", "PlanarConfiguration", "TagMissing")),
        ("dicom_gm", give(KVP=80), ("General", "KVP", "TagUnexpected")),
    ],
)
def test_fault_is_named(name, change, expected, tables):
    file = dcmread(BytesIO(encode(name)))
    change(file)
    assert expected in findings_in(file, tables)


@pytest.mark.parametrize("name", KINDS)
def test_mandatory_module_that_is_dropped_is_named(name, tables):
    dropped = []
    for key, module in tables.iods[KINDS[name].sop_class]["modules"].items():
        attributes = tables.modules[module["ref"]]
        if module["use"] == "M" and key != "sop-common" and {one["type"] for one in attributes.values()} & {"1", "2"}:
            file = dcmread(BytesIO(encode(name)))
            for tag in attributes:
                file.pop(int(tag[1:5] + tag[6:10], 16), None)
            dropped.append(key)
            assert key in {found for found, *_ in findings_in(file, tables)}
    assert {"patient", "general-study", "image-pixel"} <= set(dropped)


def test_texts_of_the_standard_were_read(tables):
    x_ray = tables.iods[KINDS["dicom_dx"].sop_class]["modules"]
    assert x_ray["voi-lut"]["cond"]["tag"] == "(0008,0068)"
    assert tables.modules["dx-image"]["(0028,0004)"]["enums"] == [{"val": ["MONOCHROME1", "MONOCHROME2"]}]
    assert tables.modules["sop-common"]["(0008,001C)"]["type"] == "3", "Synthetic Data, of 2023"
