"""What a person at a terminal sees: the bar of a run, and what comes back of `launch`, `status` and `statistics`.

Contents:
    console       the live bar of `coordinator run`
    status_text   what `coordinator status` prints
    compare       `coordinator compare`: several runs beside each other
    statistics_text     the tables of `coordinator statistics`
    statistics_picture  its two pictures
    client        `coordinator launch` and `status`: questions over the broker
"""
