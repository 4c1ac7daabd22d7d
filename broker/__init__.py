"""The ground floor: how messages look and travel between the coordinator and its workers.

Contents, from the ground up; nothing imports what stands below it on this page:
    envelope     what can be read of any message, whatever its version
    errors       every error that a user can meet, and its exit code
    allowance    how often one sender may cause something
    disk         what must outlive a power cut
    logs         the story on stderr
    wire/        What travels, and how it looks as bytes: names, messages, weights, and the parts that they are cut into
    audit        what happened, for whoever asks a year later
    link/        How a role reaches the broker: the seam, what stands behind it, and what is built on it alone
    model/       What a model file may hold, what it says about itself, and how its outputs are meant
    command      what the three command lines share
    hosting/     A broker to work with: found, contained or private, its accounts, and what answers at an address
    web/         Under the two pages: a port, a server with caps, how they look, and safety from other sites
    cli          the command `broker`
"""
