"""A run asked for: its options wherever that is, and what a person calls from Python; or a part of one, by a relay.

Contents, from the ground up; nothing imports what stands below it on this page:
    launching    the options of a run, wherever it is asked for
    api          `coordinator.run`, which the command calls, too, and its result
    relay/       A coordinator to its own broker's workers, and one worker to the coordinator above
    simulation   `coordinator.simulate`: a federation in this process
"""
