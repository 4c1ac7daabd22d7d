"""What a person at a terminal sees: the bar of a run, and what comes back of `launch` and `status`.

Contents:
    console       the live bar of `coordinator run`
    status_text   what `coordinator status` prints
    compare       `coordinator compare`: several runs beside each other
    client        `coordinator launch` and `status`: questions over the broker
"""
