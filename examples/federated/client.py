"""What NVIDIA FLARE runs at each site: rounds of a bundle's training, on the data that this site's own file names.

The server sends a plan and weights. Folders and settings of the site come from NAME.yaml in the folder that the
variable MEDFUSION_SITES names on this machine, and never leave it.
"""

import argparse

import nvflare.client as flare
import torch

from medfusion_monai.sites.federation import Plan
from medfusion_monai.sites.site_file import read_site
from medfusion_monai.sites.site_training import SiteTraining


def main():
    """Take part in every round that the server announces."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plan", required=True, help="of the server, as one word")
    plan = Plan.decoded(parser.parse_args().plan)
    flare.init()
    site = SiteTraining(*read_site(flare.get_site_name()), plan)
    while flare.is_running():
        received = flare.receive()
        if received is None:
            break
        state, images, metrics = site.take_part(received.params)
        changes = {name: value - torch.as_tensor(received.params[name]) for name, value in state.items()}
        meta = {"NUM_STEPS_CURRENT_ROUND": images}  # by which FedAvg weighs the sites
        flare.send(flare.FLModel(params_type=flare.ParamsType.DIFF, params=changes, metrics=metrics, meta=meta))
    site.close()


main()
