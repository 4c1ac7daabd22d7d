"""Who takes part in the open round: invited, greeted when they join, asked, looked for, and told of its end."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from broker.allowance import Allowance
from broker.link.seam import outgoing
from broker.wire import names
from broker.wire.messages import RoundClosed, UploadAgain
from coordinator.folder.checkpoint import Checkpoint
from coordinator.learning.aggregation import capacity
from coordinator.learning.membership import Member
from coordinator.learning.rounds import Round, RoundRecord
from coordinator.play.log_text import listed
from coordinator.play.open_round.round_start import Invitation, each_addressed
from coordinator.play.open_round.tools import Tools
from coordinator.presence.seldom import Seldom

logger = logging.getLogger(__name__)

_PRESENCE_SECONDS = 5.0
_MOST_LOOKED_AFTER = 500  #: at once: nothing is read while so many queues are asked about
_MOST_SENT = 5  #: round starts to one worker that says it has none, at once
_SENT_AGAIN_SECONDS = 30.0


class Guests:
    """Those who take part in one attempt at a round.

    Args:
        tools: Of the run.
        base: The committed state that the round begins with.
        the_round: Its answers so far.
        invitation: What they are sent.
        keep: Fsyncs the round as it is.
    """

    def __init__(
        self,
        tools: Tools,
        base: Checkpoint,
        the_round: Round,
        invitation: Invitation,
        keep: Callable[[], None],
    ) -> None:
        self.round = the_round
        self._tools = tools
        self._base = base
        self._invitation = invitation
        self._keep = keep
        self._asked: set[str] = set()
        self._sent = Allowance(_MOST_SENT, _SENT_AGAIN_SECONDS)
        self._presence = Seldom(_PRESENCE_SECONDS)
        self._presence.put_off()
        self._unlooked: list[str] = []  # whom this time has not come to yet
        self._away: set[str] = set()
        self._newcomers: dict[str, Member] = {}
        self._inviting = Seldom()
        self._lacking: dict[str, None] = {}  # who lost it, and is sent it again
        self._sending_again = Seldom()

    @property
    def record(self) -> RoundRecord:
        """What is fixed."""
        return self.round.record

    def invite_all(self) -> None:
        """Let the round start go out to those who have not answered."""
        self._invite(self.round.unanswered)
        self._presence.put_off()

    def ask_again(self, uploads: Mapping[str, str]) -> None:
        """Have workers publish updates again that are not all there.

        Args:
            uploads: The upload_id of each, by worker.
        """
        logger.warning("The update of %s is not all there; asking for it again.", listed(uploads))
        session = self._tools.session
        with session.until_link_is_back():
            for reader, workers in session.roster.by_reader(uploads).items():
                again = UploadAgain(
                    run_id=self.record.run_id,
                    round_number=self.record.round_number,
                    worker=reader,
                    upload_id=uploads[workers[0]] if len(workers) == 1 else "",
                )
                session.publisher.send(list(each_addressed(again, {reader: workers})))

    def greet(self, members: Iterable[Member], *, takes_newcomers: bool) -> None:
        """See to it that workers that joined during the round take part in it, once.

        Args:
            members: The workers of one process, fit for this run.
            takes_newcomers: Whether those who were not invited are.
        """
        torn: dict[str, str] = {}
        newcomers: list[Member] = []
        unasked: list[Member] = []
        without: list[str] = []
        for member in members:
            worker = member.worker
            is_answered = worker in self.round.answers
            if is_answered or member.held == self._invitation.held:
                self._asked.discard(worker)
                self._lacking.pop(worker, None)
                if not is_answered and member.announced is not None:
                    # Its announcement would have come before this word: the queue lost it.
                    torn[worker] = member.announced
            elif member.pause:
                continue  # it would decline; once it takes rounds again it says so
            elif not self.round.has_invited(worker):
                newcomers.append(member)
            elif worker not in self._asked:
                unasked.append(member)
            else:
                without.append(worker)
        if torn:
            self.ask_again(torn)
        if unasked:
            self._ask(unasked)
        if without:
            self._lacking.update(dict.fromkeys(without))
            self._send_again()
        if takes_newcomers:
            self._newcomers |= {member.worker: member for member in newcomers}
            self._invite_newcomers()

    def _ask(self, members: Sequence[Member]) -> None:
        """Their word may be older than the round start in their queue: asked now, they answer after that."""
        reader, session = members[0].reader, self._tools.session
        if self._sent.take(reader):  # not a model for every word that a worker may say
            self._asked.update(member.worker for member in members)
            roll_call = outgoing(session.roll_call(), names.worker_queue(reader), is_transient=True)
            session.link.post(roll_call)  # ten thousand may be asked: none is waited for

    def _send_again(self) -> None:
        """Send it to who lacks it, all together: after a crash of the broker that may be everybody."""
        if self._lacking and self._sending_again.is_due:
            with self._sending_again.doing():
                lacking, self._lacking = self._lacking, {}
                self._send_to([worker for worker in lacking if worker not in self.round.answers])

    def _invite_newcomers(self) -> None:
        """Let who came meanwhile take part, all together: each time everyone who takes part is written down anew."""
        if self._newcomers and self._inviting.is_due:
            with self._inviting.doing():
                newcomers, self._newcomers = self._newcomers, {}
                if invited := self._invited_too(list(newcomers.values())):
                    self._send_to(invited)

    def _invited_too(self, members: Sequence[Member]) -> list[str]:
        """Invite more workers, as far as the sum has room for them, and their word had not waited in the queue."""
        record = self.record
        room = capacity(record.scale_exponent) - sum(map(record.reserved, record.selected))
        absent = set(self._tools.session.look_for_absent([member.worker for member in members]))
        chosen: list[Member] = []
        for member in members:
            if member.worker in absent:
                continue
            more = 0 if member.evaluate_only else member.weight(record.most_weight)
            if more <= room:
                room -= more
                chosen.append(member)
        if chosen:
            self.round.invite(chosen)
            self._keep()
        return [member.worker for member in chosen]

    def _send_to(self, workers: Sequence[str]) -> None:
        self._asked.difference_update(workers)
        if workers:
            logger.info("Round %d is sent to %s.", self.record.round_number, listed(workers))
            self._invite(workers)

    def _invite(self, workers: Iterable[str]) -> None:
        """Let the round start go out, once the broker has room for it and for what comes back."""
        session, room, record = self._tools.session, self._tools.room, self.record
        readers = session.roster.by_reader(workers)
        if room is not None:
            processes = {reader: session.roster.num_of_reader(them[0]) for reader, them in readers.items()}
            processes |= dict.fromkeys(readers.keys() & record.relays.keys(), 2)  # eight bytes a value
            room.make(self._base.layout, record.part_bytes, processes)
        self._invitation.send(session.publisher, readers, session.number, record, session.roster.models)

    def look_after(self) -> None:
        """What time asks for: who went away, who came."""
        if self._presence.is_due:
            self._look_for_away()
        self._send_again()
        self._invite_newcomers()

    def _look_for_away(self) -> None:
        """Ask for some of those who have not answered, the others in turn: with many, all at once takes seconds."""
        left = self._unlooked or self.round.unanswered
        some, self._unlooked = left[:_MOST_LOOKED_AFTER], left[_MOST_LOOKED_AFTER:]
        with self._presence.doing(is_last=not self._unlooked):
            self._away.difference_update(some)
            self._away.update(self._tools.session.look_for_absent(filter(self.round.waits_for, some)))
            self.round.note_away(frozenset(self._away))

    def tell_closed(self) -> None:
        """It is over; the others drop their updates at the next round start."""
        session, accepted = self._tools.session, set(self.round.accepted)
        closed = RoundClosed(run_id=self.record.run_id, round_number=self.record.round_number)
        others = [worker for worker in self.record.invited if worker not in accepted]
        for word in each_addressed(closed, session.roster.by_reader(others)):
            session.publisher.send([word])
        self._purge(session.roster.by_reader(session.look_for_absent(self.round.unanswered)))

    def _purge(self, readers: Iterable[str]) -> None:
        """So that one that is away for long finds no old rounds."""
        for reader in readers:
            with self._tools.session.until_link_is_back():
                self._tools.session.roster.models.pop(reader, None)
                self._tools.session.link.purge(names.worker_queue(reader))
