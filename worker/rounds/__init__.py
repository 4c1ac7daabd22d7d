"""Taking part: from a round start that comes in to an update that goes out.

Contents:
    round_starts   round starts put together from their parts
    uploading      an update on its way
    time_limit     work that may never end, and is then left behind
    site_rules     what this site's operator allows
    failures       what can't be answered, and what of an exception is told to the coordinator
    own_site       a site with a trainer of its own
    private_parts  weights that stay at this site, on its disk
    participant    the answer to one round start
    own_trainer    the same with a trainer of one's own
    hand_over      what is to be done next, handed from thread to thread
    listener       the thread that hears
    worker_loop    the thread that trains and uploads
    start          from a command or a call to a worker that takes part
"""
