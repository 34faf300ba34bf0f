"""Trains a bundle over several sites with NVIDIA FLARE: one autoencoder for all, then one UNet.

python examples/federated/train.py --bundle bundles/medfusion_cxr --overlays demo.yaml --sites a b c \
    --site-files SITES --autoencoder-rounds 10 --rounds 10 --steps 100 --output RUN

SITES holds a.yaml, b.yaml, c.yaml, see docs/federated.md. The model is RUN/models/model.pt. The same command continues
a run that was stopped, with the rounds that are left; with other settings it is refused.
"""

import argparse
import os
import shutil
from pathlib import Path

import torch
from nvflare.app_opt.pt.file_model_persistor import PTFileModelPersistor
from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe import SimEnv

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
from medfusion_monai.sites.site_file import FOLDER
from medfusion_monai.weights.state_dict import load_weights, save_atomically, save_weights

CLIENT = Path(__file__).with_name("client.py")
GLOBAL = "FL_global_model.pt"
STOPPED = "The run has stopped. The same command continues with the rounds left."


def arguments():
    """Return the arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, help="folder of the bundle")
    parser.add_argument("--overlays", nargs="*", default=[], help="merged after train.yaml, e.g. small.yaml")
    add_settings(parser, "keys of the bundle's configs, the same for all sites", "image_size=[128,128]")
    parser.add_argument("--sites", nargs="+", required=True, help="names of the sites")
    parser.add_argument("--site-files", type=Path, required=True, help="folder with a NAME.yaml per site")
    parser.add_argument("--rounds", type=positive, required=True, help="of phase two")
    phase_one = parser.add_mutually_exclusive_group(required=True)
    phase_one.add_argument("--autoencoder-rounds", type=positive, help="of phase one")
    phase_one.add_argument("--autoencoder", type=Path, help="autoencoder.pt of an earlier training, without phase one")
    parser.add_argument("--steps", type=positive, required=True, help="of a round, at each site")
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    return parser.parse_args()


def run_phase(phase, rounds, state, agreement, options):
    """Run the rounds of a phase that are left, and return the weights of all sites."""
    workspace = options.output / "workspace"
    finished, begun = options.output / f"{phase}.pt", options.output / f"{phase}_begin.pt"
    if finished.is_file():
        return torch.load(finished, weights_only=True)
    total = rounds + (phase == "autoencoder")  # the last one measures the latents
    killed = sorted((workspace / phase).glob(f"**/{GLOBAL}"))
    if killed or begun.is_file():
        state = read_global(killed[-1] if killed else begun)
    done = round(float(state[ROUNDS][0]))
    save_atomically(state, begun)
    shutil.rmtree(workspace / phase, ignore_errors=True)
    if done < total:
        recipe = FedAvgRecipe(
            name=phase,
            model_persistor=PTFileModelPersistor(source_ckpt_file_full_name=str(begun.resolve())),
            min_clients=len(options.sites),
            num_rounds=total - done,
            train_script=str(CLIENT),
            train_args=f"--plan {Plan(phase, rounds, options.steps, agreement).encoded()}",
            key_metric="",
        )
        recipe.set_per_site_config({name: {} for name in options.sites})
        try:
            result = Path(recipe.execute(environment(options, workspace)).get_result())
        except RuntimeError as error:
            raise SystemExit(f"{error}\n{STOPPED}") from error
        [path] = result.glob(f"**/{GLOBAL}")
        state = read_global(path)
    save_atomically(state, finished)
    return state


def read_global(path):
    """Return the weights that a server keeps, or that a phase began with."""
    found = torch.load(path, weights_only=True)
    return {name: torch.as_tensor(value) for name, value in found.get("model", found).items()}


def environment(options, workspace):
    """Return where jobs run: the simulator, with a process per site."""
    os.environ[FOLDER] = str(options.site_files.resolve())
    return SimEnv(clients=options.sites, num_threads=len(options.sites), workspace_root=str(workspace.resolve()))


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
    """Return the files of all sites, which the simulator's sites read."""
    return [options.site_files / f"{name}.yaml" for name in options.sites]


def main():
    """Train both phases, and write the model."""
    options = arguments()
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
