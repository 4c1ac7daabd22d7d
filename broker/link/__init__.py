"""How a role reaches the broker: the seam, what stands behind it, and what is built on it alone.

Contents:
    seam            what a role may ask of a broker
    memory          a Link inside one process, for tests and simulations
    validator       deliveries judged by form and sender
    publisher       publishing that outlives a lost connection
    single_reader   the proof of being the one reader of a queue
    standstill      since when the broker takes no messages
    address         a broker's address, checked and shown without its password
    attempts        which address is tried next, how soon, and what refused logins mean
    access          how the broker is reached, and as whom
    validity        how long the certificates of a connection are valid
    invitation      the same as one file to hand over
    rabbitmq        the Link over RabbitMQ
"""
