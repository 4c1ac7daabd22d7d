"""Keras, in a child process: the models of the named tasks, saving, and trying before a commit.

Contents:
    pipes         the child process and its pipes: asked, answered, ended
    process       what a run asks of Keras, in that process
    child         the child process itself: it answers requests
    in_process    what the child does, done in this process: for a simulation
    building      a task's model made, described, and built again
    keeper        models kept from round to round: saved, tried, asked for their metrics
    task_models   their Keras models; imported by the child process alone
    form          whether workers can train a model, found out in the child
    rehearsal     one step on made-up examples, as a worker takes it
    vocabulary    words that a layer has learned travel inside the model
    arrays        tasks of named arrays, which need no Keras
    trial         whether a model still answers with numbers, tried in the child before a commit
    curves        curves.png; drawn by the child
"""
