"""What travels, and how it looks as bytes: names, messages, weights, and the parts that they are cut into.

Contents:
    names       worker names, queue names, and who may act for whom
    versions    which wire is spoken here, and what is said to another version
    codec       msgpack, the only file that imports it
    fields      dataclasses to plain values and back
    plain_json  JSON that every reader takes, and what comes in as JSON
    tensors     weights as one float32 vector: trainable ones, statistics, frozen ones
    scores      counts of a classifier's answers that add up over workers
    limits      how much one message may say
    settings    how a worker trains, and on what
    statistics  what is asked and told of data before a training
    messages    what travels, one frozen dataclass per message
    swarms      what many workers of one process say of themselves together
    transfer    a vector cut into parts, encoded, and put together again
"""
