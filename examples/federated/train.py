"""Trains a bundle over several sites with NVIDIA FLARE: one autoencoder for all, then one UNet.

python examples/federated/train.py --bundle bundles/medfusion_cxr --overlays demo.yaml --sites a b c \
    --site-files SITES --autoencoder-rounds 10 --rounds 10 --steps 100 --output RUN

runs in FLARE's simulator; SITES holds a.yaml, b.yaml, c.yaml, see docs/federated.md. With --server KIT in place of
--site-files, a FLARE server on this machine trains over the sites that are connected to it. The model is
RUN/models/model.pt. The same command continues a run that was stopped, with the rounds that are left; with other
settings it is refused.
"""

import argparse
import warnings
from hashlib import sha256
from pathlib import Path

import torch
from nvflare.app_opt.pt.file_model_persistor import PTFileModelPersistor
from nvflare.job_config.api import FedJob
from nvflare.job_config.script_runner import ScriptRunner
from nvflare.recipe.secrets import PotentialSecretWarning
from places import Server, Simulator
from rounds import Rounds

from medfusion_monai.cli.arguments import add_settings, positive, settings_of
from medfusion_monai.runtime.errors import first_cause
from medfusion_monai.runtime.files import file_sha256
from medfusion_monai.sites.federation import (
    ROUNDS,
    Plan,
    agree_on_latents,
    first_state,
    open_parts,
    write_model,
)
from medfusion_monai.sites.run_record import keep_to_run
from medfusion_monai.weights.state_dict import load_weights, save_atomically, save_weights

CLIENT = Path(__file__).with_name("client.py")
STOPPED = "The run has stopped. The same command continues with the rounds left."


def arguments():
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, help="folder of the bundle")
    parser.add_argument("--overlays", nargs="*", default=[], help="merged after train.yaml, e.g. small.yaml")
    add_settings(parser, "keys of the bundle's configs, the same for all sites", "image_size=[128,128]")
    parser.add_argument("--sites", nargs="+", required=True, help="names of the sites")
    parser.add_argument("--min-sites", type=positive, help="of which a round needs at least so many; all if left out")
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--site-files", type=Path, help="folder with a NAME.yaml per site, for the simulator")
    place.add_argument("--server", type=Path, help="startup kit of the administrator of a FLARE server on this machine")
    parser.add_argument("--rounds", type=positive, required=True, help="of phase two")
    phase_one = parser.add_mutually_exclusive_group(required=True)
    phase_one.add_argument("--autoencoder-rounds", type=positive, help="of phase one")
    phase_one.add_argument("--autoencoder", type=Path, help="autoencoder.pt of an earlier training, without phase one")
    parser.add_argument("--steps", type=positive, required=True, help="of a round, at each site")
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    return parser.parse_args()


def run_phase(phase, rounds, state, agreement, options):
    """Run the rounds of a phase that are left, and return the weights of all sites."""
    finished, kept = options.output / f"{phase}.pt", options.output / f"{phase}_kept.pt"
    if finished.is_file():
        return torch.load(finished, weights_only=True)
    if not kept.is_file():
        save_atomically(state, kept)
    total = rounds + (phase == "autoencoder")  # the last one measures the latents
    plan = Plan(phase, rounds, options.steps, agreement)
    failures = 0
    while (done := rounds_of(kept)) < total:
        try:
            options.place.run(make_job(plan, kept, total - done, options), lambda: rounds_of(kept), total)
        except RuntimeError as error:
            failures = 1 if rounds_of(kept) > done else failures + 1
            if options.min_sites == len(options.sites) or failures > 1:
                raise SystemExit(f"{error}\n{STOPPED}") from error
            print(f"{error}: beginning the round again", flush=True)
        except KeyboardInterrupt:
            raise SystemExit(f"interrupted\n{STOPPED}") from None
    state = read_kept(kept)
    save_atomically(state, finished)
    return state


def make_job(plan, kept, rounds, options):
    """Return FLARE's job for some rounds: it begins with the weights in a file, and keeps those of each round there."""
    job = FedJob(f"{options.run_name}-{plan.phase}", options.min_sites, fail_fast=True)
    job.to_server(Rounds(num_rounds=rounds))
    place = str(kept.resolve())
    job.to_server(PTFileModelPersistor(source_ckpt_file_full_name=place, global_model_file_name=place), id="persistor")
    for site in options.sites:
        job.to(ScriptRunner(str(CLIENT), f"--plan {plan.encoded()}"), site)
    return job


def rounds_of(kept):
    """Return the number of finished rounds of the weights that a server keeps."""
    return round(float(read_kept(kept)[ROUNDS][0]))


def read_kept(kept):
    """Return the weights that a server keeps, or that a phase begins with."""
    found = torch.load(kept, weights_only=True, mmap=True)
    return {name: torch.as_tensor(value) for name, value in found.get("model", found).items()}


def begin(options):
    """Return the parts of the model, with the autoencoder that was given, once nothing speaks against the run.

    Raises:
        ValueError: for a bundle, settings, files of sites or an autoencoder that cannot be used, and for an output
            that has a run with other settings.
    """
    files = [options.bundle / "configs" / name for name in ("train.yaml", *options.overlays)]
    lost = [path for path in (*files, *site_files(options)) if not path.is_file()]
    if lost:
        raise ValueError(f"there is no file {lost[0]}: correct --bundle, --overlays, --sites or --site-files")
    options.min_sites = options.min_sites or len(options.sites)
    if options.min_sites > len(options.sites):
        raise ValueError(f"--min-sites {options.min_sites} is more than the {len(options.sites)} of --sites")
    options.run_name = f"medfusion-{sha256(str(options.output.resolve()).encode()).hexdigest()[:12]}"
    options.place = place_of(options)
    torch.manual_seed(0)
    parts = open_parts(files, settings_of(options))
    if options.autoencoder is not None:
        load_weights(parts.network.autoencoder, options.autoencoder)
    settings = {name: getattr(options, name) for name in ("rounds", "autoencoder_rounds", "steps")}
    given = None if options.autoencoder is None else file_sha256(options.autoencoder)
    options.output.mkdir(parents=True, exist_ok=True)
    keep_to_run(
        options.output,
        {**settings, "sites": sorted(options.sites), "autoencoder_sha256": given, "model": parts.agreement()},
    )
    return parts


def site_files(options):
    """Return the files of all sites, which the simulator's sites read; those of a server have theirs elsewhere."""
    return [options.site_files / f"{name}.yaml" for name in options.sites] if options.site_files else []


def place_of(options):
    """Return where jobs run."""
    if options.server is None:
        return Simulator(options.sites, options.site_files, options.output / "workspace")
    return Server(options.server.resolve(), options.sites, options.min_sites, options.run_name)


def main():
    """Train both phases, and write the model."""
    options = arguments()
    warnings.simplefilter("ignore", PotentialSecretWarning)  # of the plan, which is only encoded
    try:
        parts = begin(options)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    except RuntimeError as error:  # of MONAI's parser, around that of a network
        raise SystemExit(f"error: --overlays or --set cannot be used: {first_cause(error)}") from error
    if options.autoencoder is None:
        state = run_phase(
            "autoencoder",
            options.autoencoder_rounds,
            first_state("autoencoder", parts.network),
            parts.agreement(),
            options,
        )
        agree_on_latents(state, parts.network)
    save_weights(parts.network.autoencoder, options.output / "models" / "autoencoder.pt")
    state = run_phase("diffusion", options.rounds, first_state("diffusion", parts.network), parts.agreement(), options)
    write_model(state, parts, options.rounds * options.steps, options.output / "models" / "model.pt")
    print(options.output / "models" / "model.pt")


main()
