"""DEHB: differential evolution in the brackets of Hyperband (Awad et al. 2021), through the package ``dehb``."""

from __future__ import annotations

from tempfile import TemporaryDirectory

from foretune.search.peers.columns import Columns, needed
from foretune.search.peers.config_space import ETA, HIGHEST, LOWEST, config_space, level_at, values_of
from foretune.search.peers.conversation import Job


class Dehb:
    """See `conversation.Peer`."""

    def __init__(self, columns: Columns, seed: int) -> None:
        try:
            from dehb import DEHB
        except ImportError:
            raise needed("dehb") from None
        self._folder = TemporaryDirectory()  # the package writes a log whether it is wanted or not
        space = config_space(columns, seed)
        self._dehb = DEHB(
            cs=space, dimensions=len(list(space.values())), min_fidelity=LOWEST, max_fidelity=HIGHEST, eta=ETA,
            n_workers=1, seed=seed, save_freq="end", output_path=self._folder.name, log_level="ERROR",
        )  # fmt: skip

    def ask(self) -> Job:
        """See `conversation.Peer.ask`."""
        found = self._dehb.ask()
        return Job(found["config_id"], values_of(found["config"]), level_at(found["fidelity"]), found)

    def tell(self, job: Job, loss: float, seconds: float) -> None:
        """See `conversation.Peer.tell`."""
        self._dehb.tell(job.token, {"fitness": loss, "cost": seconds})
