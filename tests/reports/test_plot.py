import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from medfusion_monai.reports.plot import svg_file, sweep_svg, ticks

SVG = "{http://www.w3.org/2000/svg}"


def drawing(rows, fid_title="FID"):
    return ElementTree.fromstring(svg_file(sweep_svg(rows, "a <sweep>", fid_title)))


def row(steps, fid, precision=0.5, recall=0.25, width=0.0):
    figures = {"fid": fid, "precision": precision, "recall": recall}
    return {
        "num_inference_steps": steps,
        **{k: {"value": v, "low": v and v - width, "high": v and v + width} for k, v in figures.items()},
    }


def circles(svg, color):
    return [(float(c.get("cx")), float(c.get("cy"))) for c in svg.iter(f"{SVG}circle") if c.get("fill") == color]


def test_markers_lie_in_proportion_to_steps_and_values():
    (x0, y0), (x1, y1), (x2, y2) = circles(drawing([row(50, 10.0), row(100, 20.0), row(250, 40.0)]), "#222222")
    assert (x2 - x0) / (x1 - x0) == pytest.approx(4, abs=0.02)
    assert (y2 - y0) / (y1 - y0) == pytest.approx(3, abs=0.02)
    assert y2 < y1 < y0


def test_shares_are_drawn_on_an_axis_from_0_to_1():
    svg = drawing([row(50, 1.0, precision=0.0), row(100, 1.0, precision=1.0)])
    (_, low), (_, high) = circles(svg, "#0072b2")
    assert low - high == pytest.approx(160)


def test_whiskers_span_the_interval():
    svg = drawing([row(50, 1.0), row(100, 1.0, precision=0.5, width=0.25)])
    paths = [p.get("d") for p in svg.iter(f"{SVG}path") if p.get("stroke") == "#0072b2" and "h8" in p.get("d")]
    start, end = re.match(r"M[\d.]+ ([\d.]+)h8m-4 0V([\d.]+)m", paths[-1]).groups()
    assert float(start) - float(end) == pytest.approx(80, abs=0.2)


def test_missing_value_breaks_the_line():
    svg = drawing([row(50, 3.0), row(100, None), row(150, 2.0), row(200, 2.5)])
    assert len(circles(svg, "#222222")) == 3
    line = next(
        p.get("d") for p in svg.iter(f"{SVG}path") if p.get("stroke") == "#222222" and p.get("stroke-width") == "2"
    )
    assert (line.count("M"), line.count("L")) == (2, 1)


def test_rows_without_any_value_give_no_drawing():
    assert sweep_svg([row(50, None, None, None)], "", "FID") == ""


def test_one_row_and_equal_values_can_be_drawn():
    assert len(circles(drawing([row(50, 7.0)]), "#222222")) == 1
    assert len({y for _, y in circles(drawing([row(50, 7.0), row(60, 7.0)]), "#222222")}) == 1


def test_texts_are_escaped_and_names_do_not_overlap():
    svg = drawing([row(50, 7.0, 0.5, 0.5)], "FID with <b> & features")
    texts = {text.text: text for text in svg.iter(f"{SVG}text")}
    assert "FID with <b> & features" in texts
    assert svg.get("aria-label") == "a <sweep>"
    assert abs(float(texts["precision"].get("y")) - float(texts["recall"].get("y"))) >= 17


def test_numbers_of_steps_that_lie_close_are_not_written_over_each_other():
    svg = drawing([row(steps, 7.0) for steps in range(100, 130)] + [row(900, 7.0)])
    places = [float(t.get("x")) for t in svg.iter(f"{SVG}text") if (t.text or "").isdigit() and int(t.text) >= 100]
    upper = places[: len(places) // 2]
    assert len(upper) >= 2
    assert min(b - a for a, b in pairwise(upper)) > 27


@pytest.mark.parametrize("ends", [(0, 1), (21.6, 33.6), (-0.2, 0.1), (7, 7), (0, 0), (1745.2, 1746.9), (1e-5, 3e-5)])
def test_ticks_are_round_and_span_the_values(ends):
    marks = ticks(*ends)
    assert marks[0] <= ends[0] + 1e-9
    assert marks[-1] >= ends[1] - 1e-9
    assert 2 <= len(marks) <= 7
    step = marks[1] - marks[0]
    assert float(f"{step:.1e}"[:3]) in (1.0, 2.0, 2.5, 5.0)
