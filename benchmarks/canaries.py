"""Plant canaries in a training set, train a small model on it, and measure whether the audit finds what it copies.

Every image carries a code of 24 bits of its own in two of its corners. Whether a generated image is a copy of a
training image is decided by its code alone, of which the audit knows nothing: at most one bit may be wrong.

    python benchmarks/canaries.py --output DIR --json FILE

About 10 minutes of one free core. It may be stopped at any time: what is finished lies in --output and is used again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medfusion_monai.audit.fingerprints import FLIPS, Prints, each_once, fingerprint, flipped
from medfusion_monai.audit.latents import LatentFeatures
from medfusion_monai.audit.measure import Copies, find_copies, make_guard, vectors
from medfusion_monai.audit.membership import TIMESTEPS, denoising_losses, membership_figures, membership_scores
from medfusion_monai.audit.statistics import nearer_to_training, share_figure
from medfusion_monai.demo.phantoms.draw_chest import draw_chest_phantom
from medfusion_monai.diffusion.inferer import LatentDiffusionSampler
from medfusion_monai.diffusion.schedule import NoiseSchedule
from medfusion_monai.networks.autoencoder import Autoencoder
from medfusion_monai.networks.medfusion import Medfusion
from medfusion_monai.networks.unet import UNet
from medfusion_monai.runtime.files import file_sha256
from medfusion_monai.runtime.seeds import derive_seed
from medfusion_monai.training.latent_statistics import measure_latent_statistics
from medfusion_monai.weights.state_dict import save_atomically

SIDE = 32
IMAGES = 500
HELD_OUT = 300
CANARIES = {64: 2, 16: 4, 8: 4, 4: 8, 2: 8}
"""Distinct canaries by the number of times that each is in the training set; all other images are there once."""
CELL, ROWS, COLUMNS = 2, 4, 3
"""Of the code: pixels of a bit's square, and squares of each of its two parts."""
BITS = 2 * ROWS * COLUMNS
WRONG_BITS = 1
"""In a code that still counts as that of a training image."""
DISTANCE = 5
"""Least number of bits in which the codes of two images differ."""
PARTLY = 6
"""Wrong bits up to which an image that is no whole copy is one in part: by chance it has the code in 1 of 90 cases."""
BODY_ERROR = 0.05
"""Root mean square error outside the code, in the range of an image, up to which the rest is a copy too."""
GRID = (1, 10, 25, 50, 100, 150, 200, 250, 300, 400, 500, 700)
FLIP = "none"
EVERY = 250
"""Training steps between checkpoints."""


def main() -> None:
    """Run all stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the stages")
    parser.add_argument("--steps", type=int, default=1500, help="training steps of each diffusion model (1500)")
    parser.add_argument("--autoencoder-steps", type=int, default=1000, help="of the autoencoder that both use (1000)")
    parser.add_argument("--samples", type=int, default=1000, help="generated images of each model (1000)")
    parser.add_argument("--seed", type=int, default=0, help="seed (0)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    bench = Bench(arguments.output, arguments.steps, arguments.autoencoder_steps, arguments.samples, arguments.seed)
    result = bench.run()
    show(result)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


class Coded:
    """Images (N, 1, 32, 32) in [0, 1], of 8 bits, each with a code; its repetitions are the same image."""

    def __init__(self, count: int, seed: int, repeats: dict[int, int] | None = None) -> None:
        extra = sum((times - 1) * number for times, number in (repeats or {}).items())
        distinct = count - extra
        rng = np.random.default_rng(seed)
        self.codes = draw_codes(distinct, rng)
        drawn = [draw_chest_phantom(seed * 1_000_000 + index, index % 2, SIDE)[0] for index in range(distinct)]
        images = torch.stack([torch.from_numpy(image).float() for image in drawn])
        for image, code in zip(images, self.codes, strict=True):
            write_code(image, code)
        self.distinct = (images * 255).round() / 255
        self.labels = torch.arange(distinct) % 2
        self.times = torch.ones(distinct, dtype=torch.long)
        place = 0
        for times, number in (repeats or {}).items():
            self.times[place : place + number] = times
            place += number
        self.order = torch.arange(distinct).repeat_interleave(self.times)

    @property
    def images(self) -> Tensor:
        """All images, repetitions among them."""
        return self.distinct[self.order]


def draw_codes(count: int, rng: np.random.Generator) -> Tensor:
    """Draw codes (N, 24) of zeros and ones that differ from each other in five bits at least."""
    codes = np.empty((0, BITS), dtype=np.int64)
    while len(codes) < count:
        code = rng.integers(0, 2, (1, BITS))
        if (codes != code).sum(axis=1).min(initial=BITS) >= DISTANCE:
            codes = np.concatenate([codes, code])
    return torch.from_numpy(codes)


def cells(image: Tensor) -> Iterator[Tensor]:
    """Return the squares (..., 2, 2) of the code of images (..., 32, 32): top left, then bottom right."""
    height, width = ROWS * CELL, COLUMNS * CELL
    for top, left in ((1, 1), (SIDE - height - 1, SIDE - width - 1)):
        for row in range(ROWS):
            for column in range(COLUMNS):
                y, x = top + row * CELL, left + column * CELL
                yield image[..., y : y + CELL, x : x + CELL]


def write_code(image: Tensor, code: Tensor) -> None:
    """Put a code into an image: dark and bright squares."""
    for square, bit in zip(cells(image), code.tolist(), strict=True):
        square.fill_(0.85 if bit else 0.15)


def read_codes(images: Tensor) -> Tensor:
    """Read codes (N, 24) of images (N, 1, 32, 32)."""
    return torch.stack([(square.mean(dim=(1, 2, 3)) > 0.5).long() for square in cells(images)], dim=1)


def copied(images: Tensor, known: Coded) -> Tensor:
    """Return the distinct image of which each of some images is a copy by its code; -1 for none."""
    wrong = (read_codes(images)[:, None] != known.codes).sum(dim=2)
    least, place = wrong.min(dim=1)
    return place.masked_fill(least > WRONG_BITS, -1)


def body_is_copied(images: Tensor, places: Tensor, known: Coded) -> Tensor:
    """Return for images with the code of a training image whether the rest of them is that image too."""
    outside = torch.ones(SIDE, SIDE, dtype=torch.bool)
    for square in cells(outside):
        square.fill_(False)
    errors = (images - known.distinct[places.clamp(min=0)])[:, 0][:, outside].square().mean(dim=1).sqrt()
    return (places >= 0) & (errors <= BODY_ERROR)


class Bench:
    """All stages, each kept in a file of the folder."""

    def __init__(self, folder: Path, steps: int, autoencoder_steps: int, samples: int, seed: int) -> None:
        self.folder, self.steps, self.autoencoder_steps = folder, steps, autoencoder_steps
        self.samples, self.seed = samples, seed
        self.sets = {"canaries": Coded(IMAGES, 11 + seed, CANARIES), "twin": Coded(IMAGES, 111 + seed)}
        self.held_out = Coded(HELD_OUT, 211 + seed)
        self.schedule = NoiseSchedule()

    def run(self) -> dict[str, Any]:
        """Train what is not trained, sample what is not sampled, audit, and give the figures."""
        start = time.process_time()
        autoencoder = self.autoencoder()
        networks = {name: self.diffusion(name, autoencoder) for name in self.sets}
        samples = {name: self.sample(name, network) for name, network in networks.items()}
        trained = time.process_time() - start
        extractor = LatentFeatures(autoencoder, file_sha256(self.folder / "autoencoder.pt"), (SIDE, SIDE))
        held_out = self.prints(self.held_out.distinct, extractor)
        result: dict[str, Any] = {"steps": self.steps, "samples": self.samples, "seed": self.seed}
        for name in self.sets:
            result[name] = self.audit_model(name, samples[name], held_out, extractor)
            result[name]["membership"] = self.membership(name, networks[name])
        result["twin"]["unseen"] = self.false_alarms(samples["twin"], held_out, extractor)
        return result | {"cpu_seconds_before_audit": trained, "cpu_seconds": time.process_time() - start}

    def autoencoder(self) -> Autoencoder:
        """Train the autoencoder on phantoms of its own, so that it has memorised none of the sets."""
        torch.manual_seed(self.seed)
        autoencoder = Autoencoder(latent_channels=4, channels=(16, 32, 64), norm_groups=8, deep_supervision=False)
        path = self.folder / "autoencoder.pt"
        if path.is_file():
            autoencoder.load_state_dict(torch.load(path, weights_only=True))
            return autoencoder.eval()
        images = Coded(2000, 311 + self.seed).distinct
        optimizer = torch.optim.Adam(autoencoder.parameters(), 2e-3)
        rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, self.autoencoder_steps)
        rng = np.random.default_rng(self.seed)
        for step in range(self.autoencoder_steps):
            image = images[rng.integers(len(images), size=16)] * 2 - 1
            output = autoencoder(image)
            loss = (output.reconstruction - image).abs().mean() + 1e-6 * output.posterior.kl()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
            if (step + 1) % EVERY == 0:
                print(f"autoencoder {step + 1}: {loss.item():.4f}", flush=True)
        batches = [{"image": part} for part in images.split(100)]
        autoencoder.set_latent_statistics(*measure_latent_statistics(autoencoder, batches))
        save_atomically(autoencoder.state_dict(), path)
        return autoencoder.eval()

    def diffusion(self, name: str, autoencoder: Autoencoder) -> Medfusion:
        """Train a diffusion model on a set; averaged weights."""
        torch.manual_seed(self.seed)
        unet, averaged = (UNet(4, 4, (64, 64, 64), 1, 2, 128, 16) for _ in range(2))
        averaged.load_state_dict(unet.state_dict())
        optimizer = torch.optim.AdamW(unet.parameters(), 1e-3)
        path, first = self.folder / f"{name}.pt", 0
        if path.is_file():
            state = torch.load(path, weights_only=True)
            unet.load_state_dict(state["unet"])
            averaged.load_state_dict(state["averaged"])
            optimizer.load_state_dict(state["optimizer"])
            first = state["step"]
            if state["steps"] != self.steps:
                raise SystemExit(
                    f"{path} is of {state['steps']} steps: give --steps {state['steps']}, or another folder"
                )
        coded = self.sets[name]
        latents = self.encode(autoencoder, coded.images)
        labels = coded.labels[coded.order]
        for step in range(first, self.steps):
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * min(1.0, (step + 1) / 100) * max(0.05, 1 - step / self.steps)
            loss = self.step(unet, latents, labels, step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay = min(0.995, (1 + step) / (10 + step))
            for mean, value in zip(averaged.parameters(), unet.parameters(), strict=True):
                mean.data.lerp_(value.data, 1 - decay)
            if (step + 1) % EVERY == 0:
                print(f"{name} {step + 1}: {loss.item():.4f}", flush=True)
                state = {"unet": unet.state_dict(), "averaged": averaged.state_dict()}
                save_atomically(
                    {**state, "optimizer": optimizer.state_dict(), "step": step + 1, "steps": self.steps}, path
                )
        return Medfusion(autoencoder, averaged).eval()

    def step(self, unet: UNet, latents: Tensor, labels: Tensor, step: int) -> Tensor:
        """Return the loss of a step, whose batch and noise are drawn by its number."""
        rng = np.random.default_rng(derive_seed("canaries", self.seed, step))
        chosen = torch.from_numpy(rng.integers(len(latents), size=32))
        noise = torch.from_numpy(rng.standard_normal((32, *latents.shape[1:]), dtype=np.float32))
        timesteps = torch.from_numpy(rng.integers(self.schedule.num_train_timesteps, size=32))
        known = torch.from_numpy(rng.random(32) >= 0.1)
        noisy = self.schedule.add_noise(latents[chosen], noise, timesteps)
        prediction = unet(noisy, timesteps=timesteps, class_labels=torch.where(known, labels[chosen], -1))
        return (prediction - noise).square().mean()

    @torch.no_grad()
    def encode(self, autoencoder: Autoencoder, images: Tensor) -> Tensor:
        """Return unit-variance latents, the most likely ones."""
        parts = [autoencoder.normalize(autoencoder.encode(part * 2 - 1).mean) for part in images.split(100)]
        return torch.cat(parts)

    @torch.no_grad()
    def sample(self, name: str, network: Medfusion) -> Tensor:
        """Sample images, labels alternating, and keep them."""
        path = self.folder / f"samples_{name}_{self.steps}.pt"
        if path.is_file():
            images = torch.load(path, weights_only=True)
            if len(images) == self.samples:
                return images.float() / 255
        sampler = LatentDiffusionSampler(self.schedule, (4, SIDE // 4, SIDE // 4), 50, eta=0.0)
        parts = []
        for part in torch.arange(self.samples).split(100):
            seeds = [derive_seed("canary samples", self.seed, int(index)) for index in part]
            parts.append((sampler(part % 2, network, seeds=seeds) * 255).round().to(torch.uint8))
        images = torch.cat(parts)
        save_atomically(images, path)
        return images.float() / 255

    @torch.no_grad()
    def prints(self, images: Tensor, extractor: LatentFeatures, patient: int | None = None) -> Prints:
        """Return fingerprints of images, each of a patient of its own unless one is given."""
        columns = [torch.cat([extractor(flipped(part, axes)) for part in images.split(100)]) for axes in FLIPS[FLIP]]
        patients = torch.arange(len(images)) if patient is None else torch.full((len(images),), patient)
        return Prints(fingerprint(images), torch.stack(columns, dim=1), patients)

    def find(
        self, training: Tensor, samples: Tensor, held_out: Prints, extractor: LatentFeatures
    ) -> tuple[Copies, Prints, Prints]:
        """Audit samples as ``medfusion audit`` does; held-out patients are none of the training's."""
        known = self.prints(training, extractor)
        seen = held_out._replace(patients=held_out.patients + len(training))
        generated = self.prints(samples, extractor, patient=-1)
        copies = find_copies(known, seen, generated, torch.zeros(len(seen.fine), dtype=torch.bool), FLIP)
        assert copies is not None
        return copies, known, generated

    def audit_model(self, name: str, samples: Tensor, held_out: Prints, extractor: LatentFeatures) -> dict[str, Any]:
        """Compare what the audit finds with what the codes say."""
        coded = self.sets[name]
        truth = copied(samples, coded)
        copies, known, generated = self.find(coded.images, samples, held_out, extractor)
        found, places = copies.found(), coded.order[copies.generated.places]
        guard = make_guard(known, held_out, copies, (SIDE, SIDE), FLIP)
        assert guard is not None
        assert copies.calibration is not None
        verdict = guard.check(samples)
        once = vectors(known)[each_once(known)]
        nearer = nearer_to_training(vectors(generated), once, vectors(held_out)[: len(once)])
        return {
            "calibration": copies.calibration._asdict(),
            "held_out_taken_for_leaks": int(copies.leaked.sum()),
            "by_times": [self.times_row(coded, times, truth, found, places) for times in coded.times.unique().tolist()],
            "images": self.images_row(samples, coded, truth, found, places),
            "guard": self.images_row(samples, coded, truth, verdict.copies, verdict.places),
            "nearer_to_training": float(nearer.mean()),
        }

    def times_row(self, coded: Coded, times: int, truth: Tensor, found: Tensor, places: Tensor) -> dict[str, Any]:
        """Count the distinct images that are as often in training: reproduced by the code, and found by the audit."""
        members = (coded.times == times).nonzero()[:, 0]
        reproduced = [int(member) for member in members if bool((truth == member).any())]
        named = [member for member in reproduced if bool((found & (places == member) & (truth == member)).any())]
        of_them = torch.isin(truth, members)
        row: dict[str, Any] = {
            "times": times,
            "distinct": len(members),
            "reproduced": len(reproduced),
            "found": len(named),
            "copies": int(of_them.sum()),
            "copies_found": int((of_them & found).sum()),
        }
        if reproduced:
            row["recall"] = share_figure(len(named), len(reproduced)).as_dict()
        if row["copies"]:
            row["recall_of_copies"] = share_figure(row["copies_found"], row["copies"]).as_dict()
        return row

    def images_row(self, samples: Tensor, coded: Coded, truth: Tensor, found: Tensor, places: Tensor) -> dict[str, Any]:
        """Compare generated images: copies by the code, and by the audit; those in part are no false alarms."""
        is_copy = truth >= 0
        whole = body_is_copied(samples, truth, coded)
        others = int((~is_copy).sum())
        wrong = (read_codes(samples) != coded.codes[places]).sum(dim=1)
        partly = ~is_copy & found & (wrong <= PARTLY)
        row: dict[str, Any] = {
            "copies": int(is_copy.sum()),
            "of_them_whole": int(whole.sum()),
            "found": int((is_copy & found).sum()),
            "found_with_right_image": int((is_copy & found & (places == truth)).sum()),
            "whole_found": int((whole & found).sum()),
            "others": others,
            "others_found": int((~is_copy & found).sum()),
            "of_them_copies_in_part": int(partly.sum()),
        }
        if row["copies"]:
            row["recall"] = share_figure(row["found"], row["copies"]).as_dict()
        if row["of_them_whole"]:
            row["recall_of_whole"] = share_figure(row["whole_found"], row["of_them_whole"]).as_dict()
        number = row["others_found"] - row["of_them_copies_in_part"]
        row["false_alarms"] = share_figure(number, others - row["of_them_copies_in_part"]).as_dict()
        return row

    def false_alarms(self, samples: Tensor, held_out: Prints, extractor: LatentFeatures) -> dict[str, Any]:
        """Audit the twin against the canaries' set, which it has never seen: whatever is found is none."""
        copies, known, _ = self.find(self.sets["canaries"].images, samples, held_out, extractor)
        guard = make_guard(known, held_out, copies, (SIDE, SIDE), FLIP)
        assert guard is not None
        alarms = {"audit": copies.found(), "guard": guard.check(samples).copies}
        return {name: share_figure(int(each.sum()), len(each)).as_dict() for name, each in alarms.items()}

    def membership(self, name: str, network: Medfusion) -> dict[str, Any]:
        """Recognise training images by their loss: all distinct ones, by their times, and by timestep."""
        coded = self.sets[name]

        def losses(images: Coded) -> Tensor:
            items = [{"image": i, "label": int(n)} for i, n in zip(images.distinct, images.labels, strict=True)]
            return denoising_losses(network, self.schedule, items, GRID, 2, self.seed, 100)

        members, others = losses(coded), losses(self.held_out)
        usual = torch.tensor([step in TIMESTEPS for step in GRID])

        def figures(chosen: Tensor, steps: Tensor) -> dict[str, Any]:
            found = membership_figures(*membership_scores(members[chosen][:, steps], others[:, steps]))
            return {key: figure.as_dict() for key, figure in found.items()}

        everyone = torch.ones(len(members), dtype=torch.bool)
        return {
            "all": figures(everyone, usual),
            "by_times": {times: figures(coded.times == times, usual) for times in coded.times.unique().tolist()},
            "by_timestep": {
                step: figures(everyone, torch.tensor([step == other for other in GRID]))["auc"]["value"]
                for step in GRID
            },
        }


def show(result: dict[str, Any]) -> None:
    """Print the figures."""

    def interval(figure: dict[str, Any] | None) -> str:
        if figure is None or figure["value"] is None:
            return "-"
        return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"

    for name in ("canaries", "twin"):
        part = result[name]
        print(
            f"{name}: threshold {part['calibration']['threshold']:.3f}, "
            f"nearer to training {part['nearer_to_training']:.3f}"
        )
        for row in part["by_times"]:
            auc = part["membership"]["by_times"][row["times"]]["auc"]
            print(
                f"  {row['times']:3} times: {row['reproduced']} of {row['distinct']} reproduced, {row['found']} found; "
                f"{row['copies_found']} of {row['copies']} copies found; loss AUC {interval(auc)}"
            )
        for rule in ("images", "guard"):
            row = part[rule]
            print(
                f"  {rule}: recall {interval(row.get('recall'))} of {row['copies']}, "
                f"whole {interval(row.get('recall_of_whole'))} of {row['of_them_whole']}; "
                f"others found {row['others_found']} of {row['others']}, of them copies in part "
                f"{row['of_them_copies_in_part']}; false alarms {interval(row['false_alarms'])}"
            )
        print(f"  loss, all: AUC {interval(part['membership']['all']['auc'])}", end=", ")
        print(f"true positives at 1% {interval(part['membership']['all']['tpr_at_1_fpr'])}")
        print("  by timestep: " + ", ".join(f"{t}: {v:.3f}" for t, v in part["membership"]["by_timestep"].items()))
    for rule, figure in result["twin"]["unseen"].items():
        print(f"twin against images it has never seen, {rule}: {interval(figure)}")


if __name__ == "__main__":
    main()
