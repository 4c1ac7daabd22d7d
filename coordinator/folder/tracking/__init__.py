"""What a run reaches, told to TensorBoard and MLflow: by a process of its own that reads history.csv.

Contents:
    kinds      which trackers there are, and whether they are installed
    trackers   how each of them is told
    follower   the process that reads and tells
    process    the same, seen from the coordinator
"""
