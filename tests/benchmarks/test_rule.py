import re
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import yaml

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
arms, evaluation, protocol, real_tables, rule = (
    import_module(f"study.{name}") for name in ("arms", "evaluation", "protocol", "real_tables", "rule")
)
sys.path.remove(str(BENCHMARKS))

SMALL = BENCHMARKS.parent / "bundles" / "medfusion_cxr" / "configs" / "small.yaml"
LENGTHS = (0.6, 1.0)


def records_of(arm, ratios, recall=0.3, auc=0.8, error=0.1, lengths=LENGTHS):
    """Records of an arm: its ratio by length and seed; the distance of real images is 2."""
    found = []
    for length, of_seeds in zip(lengths, ratios, strict=True):
        for seed, ratio in enumerate(of_seeds):
            about = {"arm": arm, "seed": seed, "length": length}
            errors = {"averaged": {"geometric_mean": error}}
            found.append({**about, "kind": "training", "steps": round(100 * length), "clean_error": errors})
            figures = {"fid": 2 * ratio, "precision": 0.5, "recall": recall, "auc": auc}
            found.append({**about, "kind": "evaluation", **figures})
    return found


REAL = {"kind": "baseline", "name": "real", "fid": 2.0, "count": 9, "precision": 0.6, "recall": 0.7, "auc": 0.9}
REFERENCE = [REAL, *records_of("v_l2", [(6.0, 6.2, 6.1, 5.9), (5.0, 5.2, 5.1, 4.9)])]
BETTER = [(5.0, 5.2, 5.1, 4.9), (4.0, 4.2, 4.1, 3.9)]


def test_the_reference_is_the_recipe_of_small_yaml():
    settings = yaml.safe_load(SMALL.read_text())
    train = yaml.safe_load(SMALL.with_name("train.yaml").read_text())
    reference = arms.choose_arms([], rule.RULE["reference"])[0]
    both = {**train, **settings}
    assert reference.schedule == {"prediction_type": both["prediction_type"]}
    assert (both["noise_schedule"], both["zero_terminal_snr"], both["loss_weighting"]) == (
        "scaled_linear",
        False,
        "none",
    )
    assert reference.loss == {"loss": both["diffusion_loss"]}
    sampler = (both["sampler"], both["num_inference_steps"], both["spacing"], both["eta"], both["guidance_scale"])
    assert (protocol.PROTOCOLS["small.yaml"].sampler, *sampler[2:]) == ("unipc_30", "logsnr", 0.0, 1.0)
    assert f"{sampler[0]}_{sampler[1]}" == evaluation.SMALL


def test_the_numbers_of_the_rule_are_those_of_its_text():
    text = " ".join(rule.__doc__.split())
    assert "At least four seeds" in text
    assert rule.RULE["least_seeds"] == 4
    assert [float(share) / 100 for share in re.findall(r"after (\d+)% and after (\d+)%", text)[0]] == rule.RULE[
        "lengths"
    ]
    assert f"its recall is not worse: the mean difference is at least -{rule.RULE['recall_margin']:g}" in text
    assert f"its AUC is not worse: the mean difference is at least -{rule.RULE['auc_margin']:g}" in text


def test_an_arm_without_effect_is_better_by_chance_once_in_a_hundred_times():
    draws = np.random.default_rng(0).standard_normal((200_000, 4))
    differences = [rule.Difference(tuple(row)) for row in draws[:2000]]
    better = -draws.mean(axis=1) > np.ptp(draws, axis=1)
    assert [-each.mean > each.range for each in differences] == better[:2000].tolist()
    assert better.mean() == pytest.approx(0.0108, abs=0.0008)


def test_an_arm_wins_that_is_better_by_more_than_the_spread_at_both_lengths():
    assert rule.winner([*REFERENCE, *records_of("flow", BETTER)]) == ("flow", "flow wins")


def test_the_margin_is_the_range_of_the_paired_differences():
    near, far = ([BETTER[0], (4.0, one, 4.1, 3.9)] for one in (4.9, 5.1))  # differences -1, -0.3 or -0.1, -1, -1
    assert rule.judge_arm([*REFERENCE, *records_of("flow", near)], "flow", 1.0).passes
    assert not rule.judge_arm([*REFERENCE, *records_of("flow", far)], "flow", 1.0).passes


@pytest.mark.parametrize(
    ("ratios", "others", "why"),
    [
        ([BETTER[0], (4.0, 5.2, 4.1, 3.9)], {}, "ratio"),
        ([BETTER[0], (7.0, 7.2, 7.1, 6.9)], {}, "ratio"),
        (BETTER, {"recall": 0.28}, "recall"),
        (BETTER, {"recall": 0.28, "auc": 0.77}, "recall, AUC"),
    ],
)
def test_an_arm_that_misses_a_condition_does_not_pass_and_says_which(ratios, others, why):
    records = [*REFERENCE, *records_of("flow", ratios, **others)]
    verdict = rule.judge_arm(records, "flow", 1.0)
    assert (verdict.passes, verdict.why) == (False, why)
    assert rule.winner(records)[0] is None


def test_a_recall_and_auc_within_their_margins_pass():
    assert rule.winner([*REFERENCE, *records_of("flow", BETTER, recall=0.291, auc=0.781)])[0] == "flow"


def test_a_recall_that_is_not_defined_counts_as_zero():
    records = [*REFERENCE, *records_of("flow", BETTER, recall=None)]
    verdict = rule.judge_arm(records, "flow", 1.0)
    assert (verdict.differences["recall"].mean, verdict.why) == (-0.3, "recall")
    reconstructed = {**REAL, "name": "reconstructed", "precision": None, "recall": None}
    assert "| reconstructed | 9 | 2.0 | 1.00 | 0.00 | 0.000 |" in real_tables.real_tables(
        {"a": [*records, reconstructed]}
    )


def test_an_arm_that_learns_from_the_judge_must_not_denoise_worse():
    assert rule.winner([*REFERENCE, *records_of("aligned", BETTER, error=0.09)])[0] == "aligned"
    verdict = rule.judge_arm([*REFERENCE, *records_of("aligned", BETTER, error=0.11)], "aligned", 1.0)
    assert verdict.why == "error of clean latents"
    assert rule.winner([*REFERENCE, *records_of("flow", BETTER, error=0.11)])[0] == "flow"


def test_three_seeds_or_one_length_decide_nothing():
    three = records_of("flow", [each[:3] for each in BETTER])
    assert rule.winner([*REFERENCE, *three])[1] == "no winner yet: seeds or lengths are missing of flow"
    early = records_of("flow", BETTER[:1], lengths=LENGTHS[:1])
    assert rule.winner([*REFERENCE, *early])[1] == "no winner yet: seeds or lengths are missing of flow"
    assert rule.winner(records_of("flow", BETTER))[1].startswith("no winner yet: v_l2")


def test_the_winner_may_not_change_between_the_lengths():
    flow, faster = records_of("flow", BETTER), records_of("dropout", [(4.9, 5.1, 5.0, 4.8), (3.0, 3.2, 3.1, 2.9)])
    assert rule.winner([*REFERENCE, *flow, *faster])[0] == "dropout"
    slower = records_of("dropout", [(5.1, 5.3, 5.2, 5.0), (3.0, 3.2, 3.1, 2.9)])
    found = rule.winner([*REFERENCE, *flow, *slower])
    assert found == (None, "the lengths disagree (flow at 60%, dropout at 100%): the default stays")


def test_an_arm_that_does_not_decide_is_shown_and_cannot_win():
    records = [*REFERENCE, *records_of("lr_x2", BETTER)]
    assert rule.winner(records)[0] is None
    assert "| learning rate doubled | 4 | 100 |" in real_tables.real_tables({"chest": records})
    assert "does not decide" in real_tables.real_tables({"chest": records})


def test_tables_show_each_arm_at_each_length_with_paired_differences():
    text = real_tables.real_tables({"chest": [*REFERENCE, *records_of("flow", BETTER, recall=0.25)]})
    row = next(line for line in text.splitlines() if line.startswith("| flow matching, L2 | 4 | 60 |"))
    assert row == (
        "| flow matching, L2 | 4 | 60 | 5.05 ± 0.15 | -1.00, -1.00, -1.00, -1.00 | 0.50 ± 0.00 | 0.250 ± 0.000 "
        "| -0.050 | 0.800 ± 0.000 | +0.000 | 0.1000 | no: recall |"
    )
    heads = [line for line in text.splitlines() if line.startswith("| arm |")]
    assert len(heads) == 2
    assert all(line.count("|") == heads[0].count("|") for line in (row, *heads))
    assert "| real | 9 | 2.0 | 1.00 | 0.60 | 0.700 | 0.900 |" in text


def test_an_arm_of_which_a_training_failed_is_shown_does_not_pass_and_holds_up_no_other():
    failure = {"kind": "failure", "arm": "v", "seed": 1, "length": 1.0, "error": "v, seed 1, step 9: the loss is nan"}
    one = records_of("v", [each[:1] for each in BETTER])
    records = [*REFERENCE, *one, failure, *records_of("flow", BETTER)]
    text = real_tables.real_tables({"chest": records})
    assert "Failed: v, seed 1, step 9: the loss is nan.\n" in text
    row = next(line for line in text.splitlines() if line.startswith("| v prediction, L1 | 1 | 100 |"))
    assert row.endswith("| no: a training failed |")
    assert rule.winner(records)[0] == "flow"


def test_a_default_of_all_bundles_needs_the_same_winner_on_all_data_sets():
    flow, dropout = ([*REFERENCE, *records_of(name, BETTER)] for name in ("flow", "dropout"))
    assert real_tables.joint_verdict({"a": flow, "b": flow}) == "flow wins on all data sets."
    assert real_tables.joint_verdict({"a": flow, "b": dropout}).startswith("No arm wins on all data sets")
    assert real_tables.joint_verdict({"a": flow, "b": [REAL]}) == "No verdict over all data sets yet."
    assert real_tables.joint_verdict({"a": flow}).startswith("A default of all bundles needs")


def test_every_arm_that_decides_is_run_by_default():
    assert set(protocol.PROTOCOLS["small.yaml"].arms) == {*rule.RULE["deciding"], rule.RULE["reference"]}
