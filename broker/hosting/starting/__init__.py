"""How brokers of one's own are started: one at a time, or several as one.

Contents:
    turns        one `up` or `down` at a time
    cluster      the nodes of a cluster on one machine, for trying it
"""
