"""Drives the rounds; owns the global model, its architecture and its training settings; reads no training data.

Contents, from the pure to the wire:
    aggregation    the exact weighted sum of updates, in int64 fixed point
    strategies     how the mean update becomes the next global model
    rounds         one round as a state machine: who answered, what counts, when it closes
    membership     who joined, who is away, who is selected
    history        one row a round, and history.csv
    checkpoint     the committed state and the open round, on disk
    tasks          the table of named tasks
    models         their Keras models; imported by the child process alone
    model_process  the child process that holds Keras, seen from here
    keras_child    the child process itself
    form           whether workers can train a model, found out in the child
    curves         curves.png; drawn by the child
    options        what a person asks of one run, checked once
    identity       run.json: which run a folder holds
    files          files that are whole or not there
    clock          time that stands still while the connection is lost
    journal        deliveries held until a checkpoint covers them
    invitations    the round start on its way
    fetching       the parts of one announced update
    strangers      whoever speaks another version: refused by name
    session        the place at the broker: its queue, its claim, who is there
    run            the rounds over the broker
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
