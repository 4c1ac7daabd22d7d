"""A relay: a coordinator to its own broker's workers, and one worker to the coordinator above.

It passes round starts on, and sends up the exact sum of what its workers answer: the bits of all of them as one
federation. Either side may be away, and the process be killed: what is in the sum is on disk before it is acknowledged.

Contents, from the ground up; nothing imports what stands below it on this page:
    keeping    the round start on disk, beside the open round that was made of it
    gathered   what is said above of those who are there
    part       a round that is played below as it was opened above
    region     the side below: the place of the coordinator at its own broker
    above      the side above: the worker; and both together, the one place here that knows of workers
    command    the command `coordinator relay`
"""
