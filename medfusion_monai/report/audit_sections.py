"""Sections of a report on an audit: its figures and their limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medfusion_monai.report.audit_verdict import percent
from medfusion_monai.report.page_parts import Block, Cell, Column, Group, Section, Table
from medfusion_monai.report.tables import DASH, Measure, count_cell, figure_cell, number, plain

HOW_COPIES_ARE_FOUND = (
    "Each image is compared with all training images by pixels and local structure, at 64 x 64 pixels, regardless of "
    "brightness, contrast, and small shifts, rotations and zooms. Its score is the smallest geometric mean of both "
    "distances to one training image, each divided by the mean distance to the five nearest held-out images: about 1 "
    "for an image that is no nearer to the training images than to others, near 0 for a copy."
)
LIMITS = (
    "No audit proves that nothing is memorised. This one detects copies of whole images among the generated ones, also "
    "mirrored ({flips}), brighter, blurred, noisy, shifted by up to a thirty-second of the image, rotated by about 3 "
    "degrees or zoomed by about 5%. It does not detect copied parts of an image (a device, a scar, a burnt-in name), "
    "copies that are rotated or zoomed further, images that other seeds, labels or guidance would give, or what an "
    "attack on the weights could extract: the test of the loss is one of many such attacks."
)
_RATE = Measure("copy_rate", "Copy rate", 2, scale=100.0)
_RECALL = Measure("recall", "Recall", 1, scale=100.0)
_ALARMS = Measure("false_alarms", "False alarms", 1, scale=100.0)
_SHARE = Measure("nearer_to_training", "Nearer to training", 1, scale=100.0)
_AUC = (Measure("auc", "AUC", 3), Measure("tpr_at_1_fpr", "True positives at 1% false positives (%)", 1, scale=100.0))


def audit_sections(audit: Mapping[str, Any]) -> list[Section]:
    """Return the sections of an audit, for a report of its own or within another."""
    flips = "in no direction" if audit["flips"] == "none" else audit["flips"]
    sections = [
        _copies_section(audit),
        _power_section(audit),
        _closest_section(audit),
        _sets_section(audit),
        _membership_section(audit),
        Section("What this audit cannot detect", [LIMITS.format(flips=flips)]),
    ]
    return [section for section in sections if section.blocks]


def conclusions(audit: Mapping[str, Any]) -> list[str]:
    """Return what the audit found and withheld, as sentences."""
    row = audit["rows"][0]
    rate = row["copy_rate"]
    if rate["value"] is None:
        return [f"The number of copies among the generated images is not reported: {rate['note']}."]
    found = (
        f"{row['copies']:,} of {row['count']:,} generated images are copies of a training image by the rule below "
        f"({percent(rate['value'])}, 95% interval {percent(rate['low'])} to {percent(rate['high'])}), of "
        f"{row['training_images']:,} different training images; up to {row['expected_false_alarms']:.1f} would be "
        "flagged if none were copies."
    )
    return [found]


def audit_warnings(results: Mapping[str, Any]) -> list[str]:
    """Return the warnings that precede the figures, as sentences."""
    audit, warnings = results["audit"], []
    if audit["leaks"]:
        shown = ", ".join(f"{leak['split']} {leak['number']}" for leak in audit["leaks"][:10])
        more = len(audit["leaks"]) - 10
        warnings.append(
            f"{len(audit['leaks'])} held-out images are also training images, or nearly so ({shown}"
            + (f" and {more} more" if more > 0 else "")
            + "; numbers in the datalist, from 0). They make evaluations too good and were left out here."
        )
    if audit["repeats"]:
        warnings.append(
            f"{audit['repeats']} training images repeat another one, pixel by pixel: repeated images are the first "
            "to be memorised. Prepare the data without repetitions."
        )
    if audit.get("rate") is not None and audit["rate"] > audit["wanted_rate"] + 1e-12:
        warnings.append(
            f"With {audit['held_out']} held-out images, false alarms are only known to be at most "
            f"{100 * audit['rate']:.2f}%; a bound of {percent(audit['wanted_rate'])} needs 99."
        )
    if audit.get("apart"):
        warnings.append(
            f"{audit['apart']} held-out images have scores that stand apart from the rest, as of near-duplicates of "
            "training images. They were left out of the calibration, where they would hide copies. Check that no "
            "patient is in both sets."
        )
    return [*warnings, *_class_warnings(results)]


def _class_warnings(results: Mapping[str, Any]) -> list[str]:
    sets = {item["name"]: item for item in results["sets"]}
    classes = [name for name, count in (sets["training"]["classes"] or {}).items() if count]
    if len(classes) == 1:
        return [
            f"All training images are of class {plain(classes[0])}: the figures say nothing about other classes or "
            "a model of several."
        ]
    drawn = [name for name, count in (sets["generated"]["classes"] or {}).items() if count]
    if len(drawn) == 1 and drawn[0] in classes:
        lacking = ", ".join(plain(name) for name in classes if name != drawn[0])
        return [
            f"All generated images are of class {plain(drawn[0])}: nothing can be concluded about copies of "
            f"{lacking}. Sample those classes too."
        ]
    return []


def _copies_section(audit: Mapping[str, Any]) -> Section:
    notes: list[str] = []
    columns = [Column("Generated images")]
    titles = ("Images", "Copies", "Copy rate (%)", "False alarms, at most", "Training images copied")
    columns += [Column(title, kind="number") for title in titles]
    rows = []
    for row in audit["rows"]:
        alarms = row.get("expected_false_alarms")
        name = "All classes" if row["class_name"] is None else plain(row["class_name"])
        rows.append(
            [
                Cell(name),
                count_cell(row["count"]),
                count_cell(row.get("copies")),
                figure_cell(row["copy_rate"], _RATE, notes),
                Cell(DASH if alarms is None else number(alarms, 1)),
                count_cell(row.get("training_images")),
            ]
        )
    blocks: list[Block] = []
    if audit.get("measures"):
        blocks.append(HOW_COPIES_ARE_FOUND)
    if audit.get("threshold") is not None:
        blocks.append(
            f"An image counts as a copy if its score is below {audit['threshold']:.3f}, as for at most "
            f"{percent(audit['rate'])} of images like the {audit['held_out']:,} held-out ones, which were not trained "
            f"on. The median score is {audit['median_held_out']:.3f} for held-out images and "
            f"{audit['median_generated']:.3f} for generated ones."
        )
    passed = audit.get("passed") or {}
    if "nearer_than_all" in passed:
        counts = [round(passed[key]["value"] * passed["count"]) for key in ("nearer_than_99", "nearer_than_all")]
        blocks.append(
            f"Of the {passed['count']:,} images that are not copies, {counts[0]:,} are nearer to a training image, by "
            f"pixels, than 99% of the held-out images are, and {counts[1]:,} nearer than all of them."
        )
    if audit.get("near_by_measure"):
        alone = ", ".join(f"{name} {count:,}" for name, count in audit["near_by_measure"].items())
        blocks.append(
            f"Images as near by a single distance, with its own threshold at the same rate: {alone}. "
            "They are reported but not counted: smooth images come near to others by structure or by features."
        )
    blocks.append(Table("Copies of training images, with 95% intervals", columns, [Group("", rows)], notes))
    return Section("Copies", blocks)


def _power_section(audit: Mapping[str, Any]) -> Section:
    title, power = "What the copy guard finds", audit.get("power")
    if not power:
        return Section(title, [])
    notes: list[str] = []
    columns = [Column("Degraded copies"), Column("Found (%)", kind="number")]
    rows = [[Cell(plain(name)), figure_cell(figure, _RECALL, notes)] for name, figure in power["recall"].items()]
    rows.append([Cell("Held-out images (false alarms)"), figure_cell(power["false_alarms"], _ALARMS, notes)])
    text = (
        f"{power['images']} training images were degraded and passed to the guard at its threshold of "
        f"{audit['guard']['threshold']:.3f}: noise of standard deviation 0.05, Gaussian blur and shifts in pixels, "
        "rotation in degrees. False alarms are those among held-out images, each half judged by a threshold from the "
        "other half."
    )
    return Section(title, [text, Table("Recall, with 95% intervals", columns, [Group("", rows)], notes)])


def _closest_section(audit: Mapping[str, Any]) -> Section:
    if not audit["closest"]:
        return Section("Closest pairs", [])
    measures = list(audit["closest"][0]["ratios"])
    withheld = audit["rows"][0]["copy_rate"]["value"] is None
    columns = [Column("Generated image"), Column("Training image", kind="number"), Column("Score", kind="number")]
    columns += [Column(f"By {name}", kind="number") for name in measures] + [Column("Copy")]
    rows = [
        [
            Cell(plain(pair["file"])),
            count_cell(pair["training"]),
            Cell(number(pair["score"], 3)),
            *(Cell(number(pair["ratios"][name], 3)) for name in measures),
            Cell("" if withheld else "yes" if pair["copy"] else "no"),
        ]
        for pair in audit["closest"]
    ]
    caption = "The smallest scores. Training images are numbered from 0, in the order of the datalist"
    return Section("Closest pairs", [Table(caption, columns, [Group("", rows)], [])])


def _sets_section(audit: Mapping[str, Any]) -> Section:
    notes: list[str] = []
    space = audit["features"]["name"] if audit.get("features") else "pixels averaged to 16 x 16"
    title = "Nearer to training images than to as many held-out ones (%)"
    row = [Cell(title), figure_cell(audit["nearer_to_training"], _SHARE, notes)]
    columns = [Column("Figure"), Column("Value", kind="number")]
    text = (
        "If the model has memorised nothing, half of the generated images are nearer to the training images than to as "
        "many held-out ones, whatever they look like: smooth images lie near both. The interval covers the choice of "
        "generated images, not of held-out ones."
    )
    caption = f"The set as a whole, in the space of {plain(space)}"
    return Section("The set as a whole", [text, Table(caption, columns, [Group("", [row])], notes)])


def _membership_section(audit: Mapping[str, Any]) -> Section:
    figures = audit["membership"]
    shown = [measure for measure in _AUC if measure.key in figures]
    if not shown:
        return Section("Membership from the denoising loss", [])
    notes: list[str] = []
    columns = [Column("Images of each set", kind="number"), *(Column(m.title, kind="number") for m in shown)]
    row = [count_cell(figures.get("images")), *(figure_cell(figures[m.key], m, notes) for m in shown)]
    text = (
        "Anyone with the weights can measure how well the model denoises an image; memorised training images are "
        "denoised better. An AUC of 0.5 and a true-positive rate of 1% mean that the loss reveals nothing."
    )
    table = Table("Training against held-out images, with 95% intervals", columns, [Group("", [row])], notes)
    return Section("Membership from the denoising loss", [text, table])
