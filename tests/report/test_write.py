import base64
import html
import json
import re
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from medfusion_monai.evaluation.metrics.fidelity import fidelity_columns
from medfusion_monai.report.page_parts import Callout, Table
from medfusion_monai.report.render import text_of
from medfusion_monai.report.sections import document
from medfusion_monai.report.write import finite, write_report

VOID = {"br", "img", "meta", "wbr"}
NASTY = "<script>alert('x')</script> a|b *c* _d_ `e` [f](g) 胸部 \"&amp;\" {{ 7 * 7 }} {% raw %}"


class Page(HTMLParser):
    """Collects the cells of the tables of a page and what its attributes hold; tags must be balanced."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tables, self.attributes, self.bold, self.tags, self.text = [], [], [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *attr) for attr in attrs]
        self.tags.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "br" and "table" in self.open:
            self.tables[-1][-1][-1] += " "
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, *attr) for attr in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data
        if "strong" in self.open:
            self.bold.append(data)


@pytest.fixture
def written(results, pictures, tmp_path):
    """Write a report of what ``results`` is by then, and read it."""

    def write():
        write_report(results, pictures, tmp_path / "report", fidelity=fidelity_columns())
        return tuple((tmp_path / "report" / f"report.{end}").read_text("utf-8") for end in ("html", "md", "json"))

    return write


def table_of(results, words):
    blocks = [block for section in document(finite(results), fidelity_columns()).sections for block in section.blocks]
    return next(block for block in blocks if isinstance(block, Table) and words in block.caption)


def bold_of(group):
    return [[cell.best for cell in row] for row in group.rows]


def markdown_tables(text):
    """Read the cells of the tables of a Markdown text, without its marks."""
    tables, previous = [], ""
    for line in text.splitlines():
        if line.startswith("|"):
            if not previous.startswith("|"):
                tables.append([])
            if not re.fullmatch(r"[|:-]+", line):
                tables[-1].append([markdown_text(cell) for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        previous = line
    return tables


def markdown_text(cell):
    cell = re.sub(r"</?sup>", "", cell.replace("<br>", " "))
    cell = re.sub(r"(?<!\\)\*", "", cell)
    return html.unescape(re.sub(r"\\(.)", r"\1", cell))


def same(cell):
    return "".join(re.sub(r"[()]", "", cell).split())


def test_html_and_markdown_show_the_same_cells(results, written):
    results["sets"][0]["name"] = results["fidelity"][0]["name"] = NASTY
    results["fidelity"][1]["recall"] = {"value": None, "low": None, "high": None, "note": "Too few for k = 3."}
    page, text, _ = written()
    shown, plain = Page(page).tables, markdown_tables(text)
    assert len(shown) == len(plain) == 9
    for left, right in zip(shown, plain, strict=True):
        assert [[same(c) for c in row if c] for row in left] == [[same(c) for c in row if c.strip()] for row in right]


def test_html_and_markdown_have_the_same_cells_in_bold(written):
    page, text, _ = written()
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert Page(page).bold == re.findall(r"\*\*([^*]+)\*\*", "\n".join(rows))
    assert len(Page(page).bold) == 3 * 4 + 2


def test_best_of_each_group_is_in_bold_and_published_rows_never(results):
    table = table_of(results, "against the reference")
    assert [group.title for group in table.groups][:3] == [
        "All classes",
        *(f"Class: {c}" for c in ("no_cardiomegaly", "cardiomegaly")),
    ]
    for group in table.groups[:3]:
        assert bold_of(group) == [[False] * 3 + [True] * 4 + [False], [False] * 8]
    assert not any(map(any, bold_of(table.groups[3])))
    assert "never ranked" in table.groups[3].title


def test_single_set_has_nothing_in_bold(results):
    results["fidelity"] = [row for row in results["fidelity"] if row["name"] == "ours"]
    table = table_of(results, "against the reference")
    assert not any(any(map(any, bold_of(group))) for group in table.groups)
    assert "bold" not in table.caption


def test_fid_of_other_features_says_so_and_keeps_published_values_apart(results):
    results["features"] |= {"name": "phantom-cxr", "is_inception": False}
    blocks = next(s.blocks for s in document(results, fidelity_columns()).sections if s.title == "Fidelity")
    callout, _, table, published, _ = blocks
    assert isinstance(callout, Callout)
    assert "not with the Inception-v3 features of published values" in callout.text
    assert "measured with phantom-cxr features" in callout.text
    title = "FID with phantom-cxr features (not Inception)"
    assert table.columns[3].title == title
    assert len(table.groups) == 3
    assert published.columns[1].title == "FID"
    assert title in [column.title for column in table_of(results, "sampling steps").columns]


def test_features_that_are_not_named_are_not_taken_for_inception(results):
    del results["features"]
    assert table_of(results, "against the reference").columns[3].title == "FID with unnamed features (not Inception)"


def test_names_of_users_are_text_in_html(results, written):
    for place in (results["sets"][0], results["fidelity"][0], results["published"]["rows"][0], results["sweep"]):
        place["name"] = NASTY
    results["warnings"] = results["summary"] = results["repeat"]["commands"] = [NASTY]
    results["title"] = results["pictures"][0]["caption"] = results["pictures"][0]["title"] = NASTY
    results["fidelity"][2]["class_name"] = NASTY
    results["repeat"]["settings"] = {NASTY: {NASTY: 1}}
    page, text, _ = written()
    assert "script" not in Page(page).tags
    assert Page(page).text.count(NASTY) >= 9
    assert "<script" not in text.replace(f"```\n{NASTY}\n```", "")


def test_markdown_escapes_what_it_would_read_as_marks():
    assert text_of("no_cardiomegaly_2") == "no_cardiomegaly_2"
    assert text_of("a|b") == r"a\|b"
    assert text_of("_a_ *b* <i> &amp; `c`") == r"\_a\_ \*b\* &lt;i&gt; &amp;amp; \`c\`"
    assert text_of("# no heading") == r"\# no heading"
    assert text_of("1. no list") == r"1\. no list"


def test_commands_with_fences_stay_in_their_block(results, written):
    results["repeat"]["commands"] = ["echo '```'"]
    assert "````\necho '```'\n````" in written()[1]


def test_html_names_no_place_to_load_from(written):
    page = written()[0]
    places = [
        value for _, name, value in Page(page).attributes if name in ("src", "href", "xlink:href", "srcset", "data")
    ]
    assert len(places) > 5
    assert all(place.startswith(("#", "data:image/png;base64,", "data:image/svg+xml;base64,")) for place in places)
    assert not re.search(r"url\(|@import|://", page)
    assert "script" not in Page(page).tags


def test_links_lead_to_places_of_the_page_and_ids_are_unique(written):
    attributes = Page(written()[0]).attributes
    ids = [value for _, name, value in attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = {value[1:] for _, name, value in attributes if name == "href"}
    targets |= {value for _, name, value in attributes if name == "aria-labelledby"}
    assert targets <= set(ids)


def test_html_can_be_read_by_all(written):
    page = written()[0]
    parsed = Page(page)
    assert ("html", "lang", "en") in parsed.attributes
    assert any(name == "viewport" for _, _, name in parsed.attributes)
    assert parsed.tags.count("caption") == parsed.tags.count("table") == len(parsed.tables)
    assert parsed.tags.count("th") == sum(1 for tag, name, _ in parsed.attributes if (tag, name) == ("th", "scope"))
    assert [value for _, name, value in parsed.attributes if name == "alt"] == [
        "Samples. Not selected.",
        "ours: quality by number of sampling steps. Lower FID and higher precision and recall are better; whiskers are "
        "95% intervals.",
    ]
    assert "@media print" in page


def test_warnings_stand_before_all_figures(written):
    page, text, _ = written()
    assert page.index("128 images are few") < page.index("Two generators") < page.index("<table")
    assert text.index("128 images are few") < text.index("Two generators") < text.index("| Set")


def test_pictures_are_embedded_and_lie_beside(written, pictures, tmp_path):
    page, text, _ = written()
    sources = [value for _, name, value in Page(page).attributes if name == "src"]
    embedded, plot = (base64.b64decode(source.partition(",")[2]) for source in sources)
    assert embedded == (tmp_path / "report" / "samples.png").read_bytes()
    assert np.array_equal(np.array(Image.open(BytesIO(embedded))), np.array(pictures["samples.png"]))
    assert plot == (tmp_path / "report" / "figure_7_sampling_steps.svg").read_bytes()
    for name in ("samples.png", "figure_7_sampling_steps.svg"):
        assert f"]({name})" in text
        assert f"File: {name}" in Page(page).text


def test_sweep_without_any_value_has_a_table_and_no_plot(results, written, tmp_path):
    for row in results["sweep"]["rows"]:
        row |= {"fid": {"value": None, "note": "Too few."}, "precision": None, "recall": None}
    assert "figure_7" not in "".join(written())
    assert not (tmp_path / "report" / "figure_7_sampling_steps.svg").exists()
    assert table_of(results, "sampling steps").notes == ["Too few."]


def test_json_holds_the_results_without_nan(results, written):
    assert json.loads(written()[2]) == results
    results["fidelity"][0]["fid"] = {"value": np.float32("nan"), "low": 1.0, "high": float("inf"), "note": ""}
    results["fidelity"][0]["kid"]["value"] = np.float64(0.25)
    results["fidelity"][0]["count"] = np.int64(128)
    page, text, content = written()
    row = json.loads(content, parse_constant=lambda name: pytest.fail(name))["fidelity"][0]
    assert row["fid"] == {"value": None, "low": 1.0, "high": None, "note": "the result is not a finite number"}
    assert (row["kid"]["value"], row["count"]) == (0.25, 128)
    assert not re.search(r"\b(nan|inf)\b", Page(page).text + text, re.IGNORECASE)
    assert "the result is not a finite number" in text


def test_only_title_and_sets_are_needed(tmp_path):
    write_report({"title": "One set", "sets": [{"name": "ours", "count": 3}]}, {}, tmp_path)
    page = Page((tmp_path / "report.html").read_text())
    assert page.tables == [[["Set", "Images", "By class", "Size", "Source"], ["ours", "3", "–", "–", "–"]]]  # noqa: RUF001
    assert page.tags.count("h2") == 1


def test_sections_without_results_are_left_out(results):
    for part in ("sweep", "steering", "pictures", "repeat", "reconstructions", "published_reconstructions"):
        results[part] = {} if isinstance(results[part], dict) else []
    for item in (results["reference"], *results["sets"]):
        del item["content_sha256"]
    assert [section.title for section in document(results, fidelity_columns()).sections] == ["Image sets", "Fidelity"]


def test_checksums_of_sets_are_part_of_what_repeats_the_report(results):
    rows = table_of(results, "Checksums").groups[0].rows
    assert [row[0].text for row in rows] == [
        "models/model.pt",
        "images of reference",
        "images of ours",
        "images of other",
    ]


def test_folder_that_cannot_be_written_is_refused(results, pictures, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write the report into"):
        write_report(results, pictures, tmp_path / "file" / "report", fidelity=fidelity_columns())


def test_pictures_that_are_not_those_of_the_results_are_refused(results, pictures, tmp_path):
    with pytest.raises(ValueError, match=r"list the pictures \['samples.png'\], but \[\] were passed"):
        write_report(results, {}, tmp_path, fidelity=fidelity_columns())
    for name in ("../samples.png", "a\\b.png", "report.html"):
        results["pictures"][0]["file"] = name
        with pytest.raises(ValueError, match="plain file name"):
            write_report(results, {name: pictures["samples.png"]}, tmp_path, fidelity=fidelity_columns())
    assert list(tmp_path.iterdir()) == []


def test_report_is_the_same_each_time(written):
    assert written() == written()
