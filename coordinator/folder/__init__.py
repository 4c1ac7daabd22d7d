"""What is on disk: checkpoints, histories, and which run a folder holds.

Contents:
    history      one row a round, and history.csv
    checkpoint   the committed state and the open round, on disk
    run_json     run.json: which run a folder holds
    run_folder   one run's folder: all that is fsynced
    run_index    the folder --runs
    statistics_file what a survey of the sites' examples has found
"""
