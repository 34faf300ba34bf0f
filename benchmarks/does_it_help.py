"""Tell whether generated images help a classifier of two classes, on patients that the generator has not seen.

    python benchmarks/does_it_help.py --dataset-dir DATA --samples SAMPLES --model-file MODEL --output DIR [--json FILE]

DATA is a folder of ``medfusion prepare``; SAMPLES was written by inference with MODEL, whose training must have been on
the training split of DATA; anything else is refused. Kill it at any time; the same command resumes. Everything that is
finished is a file in --output, and other data, samples or rules are refused there.

Splits. The generator has seen all training patients, so the test patients are always those of the validation and test
splits together (of the validation split it has seen a loss, which may have chosen its weights). Each of five splits,
seeds 0 to 4, draws a fifth of the training patients anew for tuning, and 25, 50 and 100% of the others, smaller shares
within larger ones. All draws are by patient and class; a patient counts for the higher label.

Arms, at each share: real images only; synthetic ones only, 200, 500 and 1000% of the real ones; real ones and 100 or
500% synthetic; a network pre-trained on 500% synthetic and then trained on the real ones. Each class has that multiple
of its own real images: were synthetic images more frequent in one class, their look would tell the label. Each arm with
samples also without those that a judge calls the other class; the judge is the classifier of the same real images, so
these arms know them too. An arm whose samples do not suffice, or whose judge is near chance, is refused and reported as
such.

The classifier is a small head on features of EfficientNet-Lite0 (weights of ImageNet), without augmentation. With
--fine-tune the whole network is trained too, at 100% of the patients: real, mixed (100%), and pre-trained. Both classes
are drawn equally often. The AUC on the tuning patients, real ones for every arm, ends a training and chooses its
weights; a pre-trained network has two trainings.

Figures are the AUC on the test patients, the mean over splits, and its paired difference to real images only. Intervals
are over test patients, resampled within their class and the same for all splits and arms, and over trainings (see
``summary.over_splits``). They do not cover the sampling of the training split or another training of the generator. The
rule was set before any result and stands in ``helps/protocol.py``.

Read with care: at 25 and 50% the generator knows images of patients that the classifier does not, as one from another
hospital would; only at 100% do both know the same patients, but for the tuning ones. The fingerprint of MODEL is of the
training of its UNet: an autoencoder from another training, or weights to start from, are not recorded in it, so use
them only if they have not seen the test patients either.
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from typing import Any

import torch
from helps.classifier import ImageFiles
from helps.draws import Pool, counts_of, draw_part, refuse_small_sets
from helps.material import Material, read_material
from helps.protocol import HEAD, PRETRAINED, WHOLE, WHOLE_ARMS, Arm, Protocol
from helps.runs import Study
from helps.summary import markdown, summarise
from study.store import Store

from medfusion_monai.evaluation.metrics.feature_cache import Extraction
from medfusion_monai.evaluation.metrics.features import load_extractor
from medfusion_monai.weights import efficientnet_lite

PROTOCOL = Protocol()
# On a core that other programs use too, for the plan alone; images of 128 pixels.
FEATURE_SECONDS, HEAD_SECONDS, WHOLE_STEP_SECONDS = 0.05, 5.0, 2.0


def main() -> None:
    """Do what is left of a study and print its table."""
    arguments = parse()
    material = read_material(arguments.dataset_dir, arguments.samples, arguments.model_file, arguments.classes)
    whole = WHOLE_ARMS if arguments.fine_tune else ()
    pool = material.pool(None)
    refuse_small_sets(pool, PROTOCOL, material.class_names)
    print(plan_text(material, pool, whole, arguments.samples), flush=True)
    if arguments.plan:
        return
    extractor = load_extractor(arguments.features)
    store = Store(arguments.output)
    identity = {**material.identity(), "features": extractor.describe(), **PROTOCOL.describe()}
    store.claim(identity)
    features = material.features(Extraction(extractor, arguments.output / "features", device=arguments.device))
    pools = {HEAD: pool._replace(inputs=features)}
    pools[WHOLE] = pool._replace(inputs=ImageFiles(material.files, material.load()))

    def more_samples(counts: list[int]) -> str:
        return f"Run `{material.inference(counts, arguments.samples)}`, and the study with another --output."

    Study(store, pools, PROTOCOL, more_samples, arguments.device).run(whole)
    report(store, pool, identity, arguments.json)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset-dir", type=Path, required=True, help="folder of medfusion prepare")
    parser.add_argument("--samples", type=Path, required=True, help="folder that inference wrote")
    parser.add_argument("--model-file", type=Path, required=True, help="weights of the samples, or their folder")
    parser.add_argument("--output", type=Path, required=True, help="folder of everything that the study writes")
    parser.add_argument("--classes", nargs=2, metavar=("NEGATIVE", "POSITIVE"), help="names; needed for more than two")
    parser.add_argument("--fine-tune", action="store_true", help="train the whole network too")
    parser.add_argument("--features", default=efficientnet_lite.NAME, help="as of evaluation (efficientnet-lite0)")
    parser.add_argument("--device", default="cpu", help="of features and trainings (cpu)")
    parser.add_argument("--plan", action="store_true", help="say what it would take, and do nothing")
    parser.add_argument("--json", type=Path, help="file for all figures")
    return parser.parse_args()


def plan_text(material: Material, pool: Pool, whole: tuple[Arm, ...], samples_dir: Path) -> str:
    """Say what the study consists of, what it costs, and which samples it lacks."""
    trainings = len(PROTOCOL.arms) * len(PROTOCOL.parts())
    stages = sum(1 + (arm.kind == PRETRAINED) for arm in whole) * len(PROTOCOL.seeds)
    seconds = FEATURE_SECONDS * len(pool.labels) + HEAD_SECONDS * trainings
    seconds += WHOLE_STEP_SECONDS * PROTOCOL.whole.steps * stages
    lines = [
        f"{name}: {negative} images of {material.class_names[0]} (negative), {positive} of {material.class_names[1]}"
        for name, places in (("training", pool.training), ("test", pool.test), ("samples", pool.samples))
        for negative, positive in [counts_of(pool.labels[places])]
    ]
    lines.append(
        f"features of {len(pool.labels)} images, {trainings} trainings of a head, {stages} of the whole network; about "
        f"{seconds / 60:.0f} min on one core at most"
    )
    ratios = sorted({arm.ratio for arm in (*PROTOCOL.arms, *whole) if arm.ratio})
    lines.append("negative and positive samples that arms need, by the share of the real patients:")
    largest = [0, 0]
    for fraction in PROTOCOL.fractions:
        drawn = [counts_of(pool.labels[draw_part(pool, seed, fraction).real]) for seed in PROTOCOL.seeds]
        most = [max(counts) for counts in zip(*drawn, strict=True)]
        needs = "; ".join(f"{100 * ratio}% {ratio * most[0]} and {ratio * most[1]}" for ratio in ratios)
        lines.append(f"  at {fraction:.0%}: {needs}")
        largest = [max(pair) for pair in zip(largest, [max(ratios, default=0) * count for count in most], strict=True)]
    if any(there < count for there, count in zip(counts_of(pool.labels[pool.samples]), largest, strict=True)):
        lines.append(
            f"too few for some, which will be refused. For all, first run\n  {material.inference(largest, samples_dir)}"
        )
    return "\n".join(lines)


def report(store: Store, pool: Pool, identity: dict[str, Any], json_file: Path | None) -> None:
    """Print the table, what was refused and why, and write the JSON file."""
    records = store.records()
    rows = summarise(records, pool, PROTOCOL)
    print(f"\n{markdown(rows)}")
    if json_file:
        machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__}
        kept = [{name: value for name, value in record.items() if name != "scores"} for record in records]
        result = {"machine": machine, **identity, "rows": rows, "records": kept}
        json_file.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
