"""A run as it is played over the broker: from the next event to the next model.

Contents:
    admission        who may take part in one run
    inviting         who is invited to a round, and to another attempt
    open_round/      The open round: from its start that goes out to the updates that are in
    committed        the committed state, and what follows it
    attempts         rounds opened, taken up again, and tried once more
    gathering        bringing together those who take part
    run              the rounds over the broker: asks for the next event, and decides
    story            what the log tells of a run
    log_text         how the log says things
    run_view         a run at one moment, and what is to be told of it
"""
