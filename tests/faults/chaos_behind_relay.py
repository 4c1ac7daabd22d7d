"""The same for a federation of which some are behind a relay, at a broker of their own."""

from pathlib import Path

from broker.hosting.private import PrivateBroker
from tests.faults.chaos import QUICK, Chaos, Faults, Play
from tests.faults.forwarder import Forwarder
from tests.faults.stage import MANY_PARTS, Stage

RELAY = "north"
ABOVE = f"{RELAY}, above"  #: its network there
REGION = ("w1", "w2")


class ChaosBehindRelay(Chaos):
    """The workers that are killed are behind a relay, and w3 is at the coordinator's broker.

    Args:
        region: The broker of the relay's workers, killed and restarted, too.
        region_url: The virtual host there that is this federation's alone.
    """

    actors = ("coordinator", RELAY, *REGION)

    def __init__(
        self,
        play: Play,
        broker: PrivateBroker,
        amqp_url: str,
        region: PrivateBroker,
        region_url: str,
        folder: Path,
        seed: int,
    ) -> None:
        super().__init__(play, broker, amqp_url, folder, seed)
        self._region = region
        self._region_url = region_url
        self._networks |= {name: Forwarder(region_url) for name in (RELAY, *REGION)}
        self._networks[ABOVE] = Forwarder(amqp_url)

    def _raise_stages(self, folder: Path) -> None:
        super()._raise_stages(folder)
        (folder / RELAY).mkdir()
        self._below = Stage(self._region_url, folder / RELAY, size=MANY_PARTS, patches=QUICK)

    @property
    def _stages(self) -> tuple[Stage, ...]:
        return (self._stage, self._below)

    @property
    def _num_joining(self) -> int:
        return 2

    def _stage_of(self, worker: str) -> Stage:
        return self._below if worker in REGION else self._stage

    def _readers_at(self, stage: Stage) -> tuple[str, ...]:
        return REGION if stage is self._below else (RELAY, "w3")

    def _start(self, name: str) -> None:
        if name != RELAY:
            super()._start(name)
            return
        self._actors[name] = self._below.relay(
            name,
            self._networks[ABOVE].amqp_url,
            workers=len(REGION),
            amqp_url=self._networks[name].amqp_url,
            connect_seconds=120,
        )

    def _faults(self) -> Faults:
        return super()._faults() | {
            "relay killed": (5, lambda: self._kill(RELAY)),
            "relay told to stop": (2, lambda: self._terminate(RELAY, 0)),
            "relay away for 5 s": (1, lambda: self._kill(RELAY, 5)),
            "relay frozen": (2, lambda: self._freeze(RELAY)),
            "the region's broker killed": (2, lambda: self._restart(self._region, PrivateBroker.kill)),
            "the region's broker stopped": (1, lambda: self._restart(self._region, PrivateBroker.stop)),
        }
