import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from medfusion_monai.report.plot import sweep_svg

SVG = "{http://www.w3.org/2000/svg}"


def drawing(rows, fid_title="FID"):
    return ElementTree.fromstring(sweep_svg(rows, fid_title))


def row(steps, fid, precision=0.5, recall=0.25, width=0.0):
    figures = {"fid": fid, "precision": precision, "recall": recall}
    return {
        "num_inference_steps": steps,
        **{k: {"value": v, "low": v and v - width, "high": v and v + width} for k, v in figures.items()},
    }


def group(svg, name):
    return next(each for each in svg.iter(f"{SVG}g") if each.get("id") == name)


def points(path):
    """Return the points of a path of straight lines, as (x, y)."""
    return [(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", path.get("d"))]


def markers(svg, key):
    return [(float(use.get("x")), float(use.get("y"))) for use in group(svg, key).iter(f"{SVG}use")]


def height_of_axes(svg, number):
    places = [y for _, y in points(group(svg, f"axes_{number}").find(f"{SVG}g/{SVG}path"))]
    return max(places) - min(places)


def texts(svg):
    return [text.text for text in svg.iter(f"{SVG}text")]


def test_markers_lie_in_proportion_to_steps_and_values():
    (x0, y0), (x1, y1), (x2, y2) = markers(drawing([row(50, 10.0), row(100, 20.0), row(250, 40.0)]), "fid")
    assert (x2 - x0) / (x1 - x0) == pytest.approx(4, abs=0.02)
    assert (y2 - y0) / (y1 - y0) == pytest.approx(3, abs=0.02)
    assert y2 < y1 < y0


def test_shares_are_drawn_on_an_axis_from_0_to_1():
    svg = drawing([row(50, 1.0, precision=0.0), row(100, 1.0, precision=1.0)])
    (_, low), (_, high) = markers(svg, "precision")
    assert low - high == pytest.approx(height_of_axes(svg, 2))


def test_whiskers_span_the_interval():
    svg = drawing([row(50, 1.0), row(100, 1.0, precision=0.5, width=0.25)])
    whiskers = [path for path in group(svg, "axes_2").iter(f"{SVG}path") if "#0072b2" in path.get("style", "")]
    lengths = [abs(start - end) for path in whiskers for (x0, start), (x1, end) in pairwise(points(path)) if x0 == x1]
    assert max(lengths) == pytest.approx(height_of_axes(svg, 2) / 2, abs=0.2)


def test_value_outside_of_its_interval_can_be_drawn():
    shifted = row(50, 7.0)
    shifted["precision"] = {"value": 0.5, "low": 0.6, "high": 0.7}
    assert len(markers(drawing([shifted]), "precision")) == 1


def test_missing_value_breaks_the_line():
    svg = drawing([row(50, 3.0), row(100, None), row(150, 2.0), row(200, 2.5)])
    assert len(markers(svg, "fid")) == 3
    line = group(svg, "fid").find(f"{SVG}path").get("d")
    assert (line.count("M"), line.count("L")) == (2, 1)


def test_rows_without_any_value_give_no_drawing():
    assert sweep_svg([row(50, None, None, None)], "FID") == b""


def test_figure_that_was_not_measured_is_not_named():
    svg = drawing([row(50, None, 0.5, None), row(100, None, 0.6, None)])
    assert "precision" in texts(svg)
    assert "recall" not in texts(svg)
    assert "FID" not in texts(svg)


def test_one_row_and_equal_values_can_be_drawn():
    assert len(markers(drawing([row(50, 7.0)]), "fid")) == 1
    assert len({y for _, y in markers(drawing([row(50, 7.0), row(60, 7.0)]), "fid")}) == 1


def test_texts_are_escaped_and_names_do_not_overlap():
    svg = drawing([row(50, 7.0, 0.5, 0.5)], "FID with <b> & $features_")
    assert "FID with <b> & $features_" in texts(svg)
    places = {text.text: float(text.get("y")) for text in svg.iter(f"{SVG}text")}
    assert abs(places["precision"] - places["recall"]) >= 12


def test_long_title_is_written_in_lines():
    lines = texts(drawing([row(50, 7.0)], f"FID with {'x' * 40} and 胸部 features (not Inception)"))
    assert lines[lines.index(f"FID with {'x' * 40} and ??") + 1] == "features (not Inception)"


def test_numbers_of_steps_that_lie_close_are_not_written_over_each_other():
    svg = drawing([row(steps, 7.0) for steps in range(100, 130)] + [row(900, 7.0)])
    places = [float(t.get("x")) for t in svg.iter(f"{SVG}text") if (t.text or "").isdigit() and int(t.text) >= 100]
    assert len(places) >= 2
    assert min(b - a for a, b in pairwise(places)) > 27


def test_file_is_the_same_each_time_and_names_no_address():
    svg = sweep_svg([row(50, 7.0), row(60, 8.0)], "FID")
    assert svg == sweep_svg([row(60, 8.0), row(50, 7.0)], "FID")
    assert svg.startswith(b"<svg")
    assert svg.count(b"://") == svg.count(b'="http://www.w3.org/') == 2  # namespaces


def test_settings_of_others_are_neither_used_nor_changed():
    import matplotlib

    expected = sweep_svg([row(50, 7.0)], "FID")
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path"}):
        assert sweep_svg([row(50, 7.0)], "FID") == expected
        assert matplotlib.rcParams["font.size"] == 30
