"""Drives the rounds; owns the global model, its architecture and its training settings; reads no training data.

Contents, from the pure to the wire:
    aggregation    the exact weighted sum of updates, in int64 fixed point
    exact_sum      a sum of doubles without rounding, for statistics
    measures       what several workers measured, put together
    strategies     what a round collects, and how it becomes the next global model
    rounds         one round as a state machine: who answered, what counts, when it closes
    membership     who joined, who is away, who is selected
    admission      who may take part in one run
    inviting       who is invited to a round, and to another attempt
    history        one row a round, and history.csv
    checkpoint     the committed state and the open round, on disk
    tasks          the table of named tasks
    models         their Keras models; imported by the child process alone
    model_process  the child process that holds Keras, seen from here
    keras_child    the child process itself
    form           whether workers can train a model, found out in the child
    trial          whether a model still answers with numbers, tried in the child before a commit
    curves         curves.png; drawn by the child
    options        what a person asks of one run, checked once
    identity       run.json: which run a folder holds
    run_folder     one run's folder: all that is fsynced
    spares         large arrays of one round, used again in the next
    files          files that are whole or not there
    clock          time that stands still while the connection is lost
    journal        deliveries held until a checkpoint covers them
    invitations    the round start on its way
    fetching       the parts of one announced update
    strangers      whoever speaks another version: refused by name
    session        the place at the broker: its queue, its claim, who is there
    live_round     the open round with all that belongs to it
    run            the rounds over the broker: asks for the next event, and decides
    story          what the log tells of a run
    wording        how the log says things
    view           what a person sees of workers and runs, as plain values
    launching      the options of a run, wherever it is asked for
    shelf          the folder --runs
    showcase       where the loop lays out its state for the page's threads
    serving        one run after the other, on one session
    page, metrics  the network's page, its JSON, and /metrics
    service        from the command line to a coordinator that serves
    asking         `coordinator launch` and `status`: questions over the broker
    console        the live bar of `coordinator run`
    table          what `coordinator status` prints
    cli            the command `coordinator`
"""
