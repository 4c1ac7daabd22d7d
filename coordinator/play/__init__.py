"""A run as it is played over the broker: from the next event to the next model.

Contents:
    admission        who may take part in one run
    inviting         who is invited to a round, and to another attempt
    round_start      the round start on its way
    fetching         the parts of one announced update
    unacknowledged   deliveries held until a checkpoint covers them
    live_round       the open round with all that belongs to it
    committed        the committed state, and what follows it
    attempts         rounds opened, taken up again, and tried once more
    gathering        bringing together those who take part
    run              the rounds over the broker: asks for the next event, and decides
    story            what the log tells of a run
    log_text         how the log says things
    run_view         a run at one moment, and what is to be told of it
"""
