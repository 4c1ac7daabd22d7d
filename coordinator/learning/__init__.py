"""One round without a broker or a disk: who answered, what counts, and how weights are put together.

Contents:
    aggregation    the exact weighted sum of updates, in int64 fixed point
    exact_sum      a sum of doubles without rounding, for statistics
    measure_names  what measures are called
    measures       what several workers measured, put together
    stopping       which round was the best, and when a run is no longer becoming better
    statistics    what the sites tell of their examples, judged and put together
    squeezing      the way down made thin: coarse steps, with what they cut off kept for the next
    spares         large arrays of one round, used again in the next
    membership     who joined, who is away, who is selected
    rounds         one round as a state machine: who answered, what counts, when it closes
    strategies     what a round collects, and how it becomes the next global model
"""
