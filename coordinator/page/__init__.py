"""`coordinator serve`: one run after the other, and the pages that show them.

Contents:
    app          the network's page and its JSON
    prometheus   what /metrics tells Prometheus
    snapshot     where the loop lays out its state for the page's threads
    scheduler    one run after the other, on one session
    server       from the command line to a coordinator that serves
"""
