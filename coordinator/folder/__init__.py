"""What is on disk: checkpoints, histories, and which run a folder holds.

Contents:
    history          one row a round, and history.csv
    standing         the best round so far, and whether more rounds are wanted
    checkpoint       the committed state and the open round, on disk
    keepsakes        models of earlier rounds that stay: the best, and every n-th
    run_json         run.json: which run a folder holds
    run_folder       one run's folder: all that is fsynced
    memory_folder    the same in memory, where no files are wanted
    run_index        the folder --runs
    pruning          old runs in it, found and deleted
    statistics_file  what a survey of the sites' examples has found
    tracking/        what history.csv tells, passed on to TensorBoard and MLflow by a process of its own
"""
