"""`coordinator serve`: one run after the other, and the pages that show them.

Contents, from the ground up; nothing imports what stands below it on this page:
    snapshot     where the loop lays out its state for the page's threads
    tally        what this process has seen closed and ended
    scheduler    one run after the other, on one session
    access       who may look and who may change something
    serve_options  where `coordinator serve` is reached, and by whom
    visits       who uses the page, and what the audit log is told of it
    login        what each request must show, and the form that turns a token into a cookie
    health       whether all is well, for whoever watches from outside
    prometheus   what /metrics tells Prometheus
    app          the network's page and its JSON
    server       from the command line to a coordinator that serves
"""
