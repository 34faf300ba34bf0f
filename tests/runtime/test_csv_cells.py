import pytest

from medfusion_monai.runtime.csv_cells import inert, original


@pytest.mark.parametrize("text", ["=1+1", "+cmd|' /C calc'!A0", "-x", "@SUM(A1)", "\t=1", "\r=1", "'=1", "''-x"])
def test_text_that_begins_as_a_formula_is_inert_and_can_be_read_back(text):
    assert inert(text) == f"'{text}"
    assert original(inert(text)) == text


@pytest.mark.parametrize("value", ["no_cardiomegaly", "", "'quoted'", "a=b", "-1.5", "+2e3", -1.5, 7, None])
def test_other_values_stay_as_they_are(value):
    assert inert(value) is value
    assert original(str(value)) == str(value)
