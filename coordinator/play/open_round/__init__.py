"""The open round: from its start that goes out to the updates that are in, and what is held until that is on disk.

Contents:
    unacknowledged   deliveries held until a checkpoint covers them
    early_parts      parts of updates that are on their way over thin lines
    fetching         the parts of one announced update
    round_start      the round start on its way
    tools            what every round of a run is played with
    guests           who takes part: invited, greeted, asked, looked for
    taking           what comes in: judged, fetched, added
    live_round       the open round with all that belongs to it
"""
