"""What a FLARE server does in every round; it receives this file with each job."""

from nvflare.app_common.workflows.fedavg import FedAvg


class Rounds(FedAvg):
    """FedAvg among all sites that are there.

    FedAvg draws as many sites as a run needs at least, and waits in every round for those that have dropped out before.
    """

    def sample_clients(self, num_clients=None):
        """Return the names of the sites of a round."""
        return [name for name in super().sample_clients() if self.get_client_disconnect_time(name) is None]
