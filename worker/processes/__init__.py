"""Training on all cores: one process that takes part, and several behind it that train.

Contents:
    sharing   values handed to processes of our own; arrays are in files that all of them map
    child     a process that trains
    pool      the trainer that hands each answer to one of them
"""
