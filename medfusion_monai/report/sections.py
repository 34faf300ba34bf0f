"""The sections of a report from results; parts that were not measured are left out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from medfusion_monai.report import audit_verdict
from medfusion_monai.report.audit_sections import audit_sections
from medfusion_monai.report.page_parts import (
    Block,
    Callout,
    Cell,
    Column,
    Commands,
    Document,
    Group,
    Picture,
    Section,
    Table,
)
from medfusion_monai.report.plot import sweep_svg
from medfusion_monai.report.tables import (
    DASH,
    RECONSTRUCTION,
    STEERING,
    Measure,
    any_best,
    count_cell,
    grouped,
    measure_columns,
    measured_group,
    measures_in,
    plain,
    published_group,
    without_counts,
)
from medfusion_monai.report.verdict import verdict

PUBLISHED = "Published figures, measured on other reference sets: never ranked with the rows above"
SWEEP_FILE = "figure_7_sampling_steps.svg"
HOW_TO_READ_SWEEP = "Lower FID and higher precision and recall are better; whiskers are 95% intervals."


def document(results: Mapping[str, Any], fidelity: Sequence[Measure] = ()) -> Document:
    """Turn results into a report.

    Args:
        results: what ``report.json`` holds; ``title`` and ``sets`` are required, every other part is optional.
        fidelity: columns of the tables of fidelity and of the sweep, see ``fidelity_columns`` in ``evaluation``.
    """
    assert fidelity or not ({"fidelity", "published", "sweep"} & results.keys())
    audit = results.get("audit")
    if audit and not {"fidelity", "reconstructions"} & results.keys():  # the report of an audit alone
        answer = audit_verdict.verdict(audit)
    else:
        answer = " ".join(verdict(results, fid_title(results)))
    sections = [
        Section("Pictures", [_picture(item) for item in results.get("pictures") or []]),
        _sets_section(results),
        _fidelity_section(results, fidelity),
        _reconstructions_section(results),
        _sweep_section(results, fidelity),
        _steering_section(results),
        *(audit_sections(audit) if audit else []),
        _repeat_section(results),
    ]
    return Document(
        plain(results["title"]),
        [plain(text) for text in results.get("warnings") or []],
        [plain(text) for text in results.get("summary") or []],
        [section for section in sections if section.blocks],
        answer,
    )


def _sets_section(results: Mapping[str, Any]) -> Section:
    sets = _all_sets(results)
    columns = [Column("Set"), Column("Images", kind="number"), Column("By class"), Column("Size"), Column("Source")]
    rows = [
        [
            Cell(plain(item["name"])),
            count_cell(item.get("count")),
            Cell("\n".join(f"{plain(name)}: {count:,}" for name, count in (item.get("classes") or {}).items()) or DASH),
            Cell(_size(item)),
            Cell(plain(item.get("source") or DASH)),
        ]
        for item in sets
    ]
    if not rows:
        return Section("Image sets", [])
    text: list[Block] = [plain(results["sets_note"])] if results.get("sets_note") else []
    return Section("Image sets", [*text, Table("The images that were measured", columns, [Group("", rows)], [])])


def _fidelity_section(results: Mapping[str, Any], fidelity: Sequence[Measure]) -> Section:
    rows, published = results.get("fidelity") or [], results.get("published") or {}
    blocks: list[Block] = []
    inception = is_inception(results)
    if rows:
        if not inception:
            blocks.append(Callout(not_inception(results)))
        measures = measures_in(rows, fidelity)
        blocks.append(" ".join(measure.about for measure in measures if measure.about))
        blocks.append(_fidelity_table(results, measures, published if inception else {}))
        blocks += [plain(text) for text in results.get("scale") or []]
    if published.get("rows") and (not rows or not inception):
        blocks.append(_published_table(published, fidelity))
    if results.get("features"):
        blocks.append(_features_text(results["features"]))
    return Section("Fidelity", blocks if rows or published.get("rows") else [])


def is_inception(results: Mapping[str, Any]) -> bool:
    """Return whether the features are known to be those of published FID values."""
    return bool((results.get("features") or {}).get("is_inception"))


def fid_title(results: Mapping[str, Any]) -> str:
    """Return the title of the FID, which names features other than Inception-v3's."""
    if is_inception(results):
        return "FID"
    return f"FID with {_features_name(results)} features (not Inception)"


def not_inception(results: Mapping[str, Any]) -> str:
    """Return how figures of other features may be compared."""
    return (
        f"These figures were measured with {_features_name(results)} features, not with the Inception-v3 "
        "features of published values. Compare them with each other only."
    )


def _features_name(results: Mapping[str, Any]) -> str:
    return plain((results.get("features") or {}).get("name") or "unnamed")


def _named(measures: Sequence[Measure], results: Mapping[str, Any]) -> list[Measure]:
    """Return measures whose FID title names the features."""
    return [m._replace(title=m.title.replace("FID", fid_title(results), 1)) for m in measures]


def _fidelity_table(results: Mapping[str, Any], measures: Sequence[Measure], published: Mapping[str, Any]) -> Table:
    measures = _named(measures, results)
    notes: list[str] = []
    by_class = grouped([without_counts(row) for row in results["fidelity"]], "class_name")
    columns = [
        Column("Set"),
        Column("Images", kind="number"),
        Column("Reference", kind="number"),
        *measure_columns(measures, list(by_class.values()), notes),
    ]
    groups = []
    for name, members in by_class.items():
        heads = [
            [Cell(plain(row["name"])), count_cell(row.get("count")), count_cell(row.get("reference_count"))]
            for row in members
        ]
        title = "All classes" if name is None else f"Class: {plain(name)}"
        groups.append(measured_group(title, members, measures, heads, notes))
    if published.get("rows"):
        groups.append(published_group(PUBLISHED, published, measures, 2, notes))
    caption = (
        "Sets of images against the reference, each value with its 95% interval at these numbers of images."
        + _bold(groups)
    )
    return Table(caption, columns, _untitled_if_alone(groups), notes)


def _published_table(published: Mapping[str, Any], fidelity: Sequence[Measure]) -> Table:
    """Published figures in a separate table, because the measured ones have other features."""
    measures = measures_in(published.get("rows", []), fidelity)
    notes: list[str] = []
    group = published_group("", published, measures, 0, notes)
    columns = [Column("Published", marks=group.marks), *(Column(m.title, kind="number") for m in measures)]
    caption = "Published figures, with Inception-v3 features on other reference sets: not comparable with ours"
    return Table(caption, columns, [group], notes)


def _features_text(features: Mapping[str, Any]) -> str:
    parts = [f"Features: {plain(features.get('name') or 'unnamed')}"]
    if features.get("dimensions"):
        parts.append(f"{features['dimensions']:,} values per image")
    if features.get("resize"):
        parts.append(f"images resized: {plain(features['resize'])}")
    if features.get("sha256"):
        parts.append(f"SHA-256 of the weights {plain(features['sha256'])}")
    return "; ".join(parts) + "."


def _reconstructions_section(results: Mapping[str, Any]) -> Section:
    rows, published = results.get("reconstructions") or [], results.get("published_reconstructions") or {}
    measures = measures_in([*rows, *published.get("rows", [])], RECONSTRUCTION)
    if not measures:
        return Section("Reconstructions", [])
    notes: list[str] = []
    by_split = grouped(rows, "split")
    columns = [Column("Autoencoder"), Column("Images", kind="number")]
    columns += measure_columns(measures, list(by_split.values()), notes)
    groups = []
    for split, members in by_split.items():
        heads = [[Cell(plain(row["name"])), count_cell(row.get("count"))] for row in members]
        title = "All images" if split is None else f"Split: {plain(split)}"
        groups.append(measured_group(title, members, measures, heads, notes))
    if published.get("rows"):
        groups.append(published_group(PUBLISHED, published, measures, 1, notes))
    caption = "Images against their reconstructions: mean ± standard deviation over images, 95% interval of the mean."
    text: list[Block] = [plain(results["reconstructions_note"])] if results.get("reconstructions_note") else []
    return Section("Reconstructions", [*text, Table(caption + _bold(groups), columns, groups, notes)])


def _sweep_section(results: Mapping[str, Any], fidelity: Sequence[Measure]) -> Section:
    sweep = results.get("sweep") or {}
    rows = [without_counts(row) for row in sweep.get("rows") or []]
    if not rows:
        return Section("Sampling steps", [])
    measures = [
        m._replace(better="") for m in measures_in(rows, fidelity)
    ]  # not ranked: the plot shows how many steps are enough
    notes: list[str] = []
    counts = {"num_inference_steps": "Sampling steps", "count": "Images", "reference_count": "Reference"}
    shown = {key: title for key, title in counts.items() if any(row.get(key) is not None for row in rows)}
    heads = [[count_cell(row.get(key)) for key in shown] for row in rows]
    columns = [Column(title, kind="number") for title in shown.values()]
    columns += measure_columns(_named(measures, results), [rows], notes)
    group = measured_group("", rows, measures, heads, notes)
    name = plain(sweep.get("name") or "The model")
    title = f"{name}: quality by number of sampling steps"
    blocks: list[Block] = [plain(sweep["note"])] if sweep.get("note") else []
    if svg := sweep_svg(rows, fid_title(results)):
        blocks.append(Picture(SWEEP_FILE, title, HOW_TO_READ_SWEEP, svg))
    blocks.append(Table(f"{title}, each value with its 95% interval", columns, [group], notes))
    return Section("Sampling steps", blocks)


def _steering_section(results: Mapping[str, Any]) -> Section:
    steering = results.get("steering") or {}
    rows = steering.get("rows") or []
    if not rows:
        return Section("Does the label steer?", [])
    notes: list[str] = []
    measures = measures_in(rows, STEERING)
    heads = [
        [
            Cell(plain(row["trained_on"])),
            Cell(plain(row["tested_on"])),
            *(count_cell(row.get(key)) for key in ("train_count", "test_count", "seeds")),
        ]
        for row in rows
    ]
    columns = [Column("Trained on"), Column("Tested on")]
    columns += [Column(title, kind="number") for title in ("Training images", "Test images", "Seeds")]
    columns += measure_columns(measures, [rows], notes)
    group = measured_group("", rows, measures, heads, notes)
    caption = "A small classifier of the classes, each value with its 95% interval"
    answers = (steering.get("answers") or {}).items()
    blocks: list[Block] = [f"{plain(name)}: {found['answer']} ({plain(found['why'])})." for name, found in answers]
    blocks += [plain(steering["note"])] if steering.get("note") else []
    return Section("Does the label steer?", [*blocks, Table(caption, columns, [group], notes, head_columns=2)])


def _repeat_section(results: Mapping[str, Any]) -> Section:
    repeat = results.get("repeat") or {}
    blocks: list[Block] = []
    if repeat.get("commands"):
        blocks.append(Commands("Commands", [str(line) for line in repeat["commands"]]))
    checksums = dict(repeat.get("checksums") or {})
    for item in _all_sets(results):
        if item.get("content_sha256"):
            checksums.setdefault(f"images of {item['name']}", item["content_sha256"])
    for caption, head, entries in (
        ("Settings", "Setting", repeat.get("settings")),
        ("Seeds", "Seed of", repeat.get("seeds")),
        ("Versions", "Program", repeat.get("versions")),
        ("Checksums (SHA-256)", "File", checksums),
    ):
        if entries:
            columns = [Column(head), Column("Value", kind="code")]
            rows = [[Cell(plain(name)), Cell(_setting(value))] for name, value in entries.items()]
            blocks.append(Table(caption, columns, [Group("", rows)], []))
    return Section("To repeat this", blocks)


def _all_sets(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    reference = results.get("reference")
    return [*([reference] if reference else []), *(results.get("sets") or [])]


def _picture(item: Mapping[str, Any]) -> Picture:
    return Picture(item["file"], plain(item.get("title") or item["file"]), plain(item.get("caption") or ""))


def _size(item: Mapping[str, Any]) -> str:
    size, channels = item.get("size"), item.get("channels")
    parts = [" \N{MULTIPLICATION SIGN} ".join(str(length) for length in size)] if size else []
    if channels:
        parts.append({1: "gray", 3: "RGB"}.get(channels, f"{channels} channels"))
    return ", ".join(parts) or DASH


def _setting(value: Any) -> str:
    return plain(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _bold(groups: Sequence[Group]) -> str:
    return " Best of comparable rows in bold, even where intervals overlap." if any_best(groups) else ""


def _untitled_if_alone(groups: list[Group]) -> list[Group]:
    return groups if len(groups) > 1 else [group._replace(title="") for group in groups]
