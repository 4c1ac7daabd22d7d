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
    inbox          deliveries judged for form and sender
    fetching       the parts of one announced update
    run            the rounds over the broker
    cli            the command `coordinator`
"""
