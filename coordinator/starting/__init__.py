"""A run asked for: its options wherever that is, and what a person calls from Python.

Contents, from the ground up; nothing imports what stands below it on this page:
    launching    the options of a run, wherever it is asked for
    api          `coordinator.run`, which the command calls, too, and its result
    simulation   `coordinator.simulate`: a federation in this process, and the one place here that knows of workers
"""
