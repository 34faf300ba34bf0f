import pytest

from medfusion_monai.evaluation.metrics.fidelity import fidelity_columns
from medfusion_monai.report.page_parts import Cell, letter, mark
from medfusion_monai.report.tables import (
    DASH,
    RECONSTRUCTION,
    best_rows,
    figure_cell,
    measure_columns,
    number,
    published_cell,
    without_counts,
)

MEASURES = {measure.key: measure for measure in (*fidelity_columns(), *RECONSTRUCTION)}


def rows_of(key, *values, counts=None):
    """Make rows of one measure; a value may be a figure."""
    figures = [value if isinstance(value, dict) else {"value": value, "note": ""} for value in values]
    return [{key: figure, "count": 64 if counts is None else counts[i]} for i, figure in enumerate(figures)]


@pytest.mark.parametrize(("key", "best"), [("fid", {1}), ("kid", {1}), ("precision", {2}), ("coverage", {2})])
def test_lowest_distance_and_highest_share_are_best(key, best):
    assert best_rows(rows_of(key, 0.2, 0.1, 0.3), MEASURES[key]) == best


def test_values_that_are_equal_as_written_tie():
    assert best_rows(rows_of("precision", 0.6801, 0.6799, 0.66), MEASURES["precision"]) == {0, 1}
    assert best_rows(rows_of("precision", 0.6806, 0.6799, 0.66), MEASURES["precision"]) == {0}


def test_estimates_below_zero_are_no_better_than_zero():
    assert best_rows(rows_of("kid", -0.002, 0.0, -0.0001, 0.001), MEASURES["kid"]) == {0, 1, 2}


def test_value_alone_is_not_best():
    assert best_rows(rows_of("fid", 3.0), MEASURES["fid"]) == set()
    assert best_rows(rows_of("fid", 3.0, None), MEASURES["fid"]) == set()
    assert best_rows([{"count": 1, "fid": {"value": 3.0}}, {"count": 1}], MEASURES["fid"]) == set()


def test_missing_value_is_never_best():
    assert best_rows(rows_of("fid", 3.0, None, 4.0), MEASURES["fid"]) == {0}


def test_value_that_is_not_comparable_is_never_best():
    worthless = {"value": 1.0, "note": "Constant images: Not comparable."}
    assert best_rows(rows_of("fid", worthless, 3.0, 4.0), MEASURES["fid"]) == {1}


def test_measure_without_a_better_side_is_not_ranked():
    assert best_rows(rows_of("diversity_ms_ssim", 0.1, 0.2), MEASURES["diversity_ms_ssim"]) == set()


def test_fid_of_other_numbers_of_images_is_not_ranked_but_kid_is():
    assert best_rows(rows_of("fid", 1.0, 2.0, counts=[64, 200]), MEASURES["fid"]) == set()
    assert best_rows(rows_of("fid", 1.0, 2.0, counts=[190, 200]), MEASURES["fid"]) == {0}
    assert best_rows(rows_of("kid", 1.0, 2.0, counts=[64, 200]), MEASURES["kid"]) == {0}


def test_column_that_cannot_be_ranked_says_why():
    notes = []
    rows = [{"count": count, "fid": {"value": 1.0}, "kid": {"value": 1.0}} for count in (64, 200)]
    columns = measure_columns([MEASURES["fid"], MEASURES["kid"]], [rows], notes)
    assert [column.marks for column in columns] == ["a", ""]
    assert len(notes) == 1
    assert "numbers of images differ" in notes[0]


def test_mean_over_images_is_ranked_by_the_mean():
    rows = [{"count": 5, "mse": {"mean": mean, "std": 9e-5}} for mean in (25e-5, 24e-5)]
    assert best_rows(rows, MEASURES["mse"]) == {1}


def test_figure_has_its_interval_and_its_note_as_a_footnote():
    notes = ["first"]
    cell = figure_cell({"value": 0.00123, "low": -0.0005, "high": 0.002, "note": "few"}, MEASURES["kid"], notes, True)
    assert cell == Cell("1.23", "\N{MINUS SIGN}0.50 to 2.00", best=True, marks="b")
    assert notes == ["first", "few"]


def test_missing_value_is_a_dash_with_the_reason_as_a_footnote():
    notes = []
    assert figure_cell({"value": None, "note": "too few"}, MEASURES["recall"], notes) == Cell(DASH, marks="a")
    assert figure_cell(None, MEASURES["recall"], notes) == Cell(DASH, marks="b")
    assert notes == ["too few", "not measured"]


def test_mean_over_images_has_its_standard_deviation_in_the_scale_of_its_column():
    spread = {"mean": 25.32e-5, "std": 9.04e-5, "low": 24e-5, "high": 26e-5}
    assert figure_cell(spread, MEASURES["mse"], []) == Cell("25.3 ± 9.0", "24.0 to 26.0")


def test_published_values_have_the_decimals_that_were_published():
    assert published_cell(17.28, MEASURES["fid"]).text == "17.28"
    assert published_cell(0.7, MEASURES["precision"]).text == "0.70"
    assert published_cell([25e-5, 9e-5], MEASURES["mse"]).text == "25 ± 9"
    assert published_cell([0.994, 0.001], MEASURES["ms_ssim"]).text == "0.994 ± 0.001"
    assert published_cell(None, MEASURES["kid"]) == Cell(DASH)


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(15738, 0, "15,738"), (17.285001, 2, "17.29"), (-0.004, 2, "0.00"), (-1.5, 1, "\N{MINUS SIGN}1.5")],
)
def test_numbers_are_written_to_be_read(value, digits, text):
    assert number(value, digits) == text


def test_footnotes_count_in_letters_and_say_each_thing_once():
    assert [letter(index) for index in (0, 25, 26, 51, 52, 701, 702)] == ["a", "z", "aa", "az", "ba", "zz", "aaa"]
    notes = []
    assert [mark(notes, text) for text in ("x", "y", "x")] == ["a", "b", "a"]


def test_counts_that_have_cells_are_left_out_of_notes():
    notes = ["128 samples against 200", "128 samples against 200; few", "12 samples against 200", "few"]
    row = {"count": 128, "reference_count": 200, **{str(i): {"value": 1.0, "note": n} for i, n in enumerate(notes)}}
    left = without_counts(row)
    assert [left[str(i)]["note"] for i in range(4)] == ["", "few", "12 samples against 200", "few"]
    assert without_counts({"count": 128, "fid": {"note": notes[0]}})["fid"]["note"] == notes[0]
