"""What NVIDIA FLARE runs at each site: rounds of a bundle's training, on the data that this site's own file names.

The server sends a plan and weights. Folders and settings of the site come from NAME.yaml in the folder that the
variable MEDFUSION_SITES names on this machine, and never leave it.
"""

import argparse
import os

import nvflare.client as flare
import torch
from nvflare.apis.fl_constant import SystemConfigs
from nvflare.fuel.utils.config_service import ConfigService

from medfusion_monai.runtime.distributed import when_parent_ends
from medfusion_monai.sites.federation import FederationError, Plan
from medfusion_monai.sites.site_file import read_site
from medfusion_monai.sites.site_training import SiteTraining


def refuse_to_send_logs():
    """Raise a FederationError if FLARE's client would send this site's log, which may name images, to the server."""
    resources = ConfigService.get_section(SystemConfigs.RESOURCES_CONF)
    if resources is not None and resources.get("allow_log_streaming", True):
        raise FederationError(
            "this site would send its error log to the server: set allow_log_streaming to false in resources.json "
            "of its kit (or resources.json.default), and start its client again"
        )


def main():
    """Take part in every round that the server announces."""
    when_parent_ends(lambda: os._exit(1))  # FLARE's client; this process would keep the site's folders locked
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plan", required=True, help="of the server, as one word")
    plan = Plan.decoded(parser.parse_args().plan)
    flare.init()
    refuse_to_send_logs()
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
