"""What every round of a run is played with."""

from dataclasses import dataclass, field

from coordinator.folder.run_folder import RunFolder
from coordinator.learning.spares import Spares
from coordinator.learning.squeezing import Squeezing
from coordinator.learning.strategies import Strategy
from coordinator.play.open_round.early_parts import EarlyParts
from coordinator.play.open_round.unacknowledged import Unacknowledged
from coordinator.presence.broker_room import BrokerRoom
from coordinator.presence.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """The room is None where nobody was invited."""

    session: Session
    folder: RunFolder
    unacknowledged: Unacknowledged
    strategy: Strategy
    spares: Spares
    room: BrokerRoom | None = None
    early: EarlyParts = field(default_factory=EarlyParts)
    squeezing: Squeezing = field(default_factory=Squeezing)
