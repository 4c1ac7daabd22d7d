"""The Link over RabbitMQ; the only room that imports pika.

Contents, from the ground up; nothing imports what stands below it on this page:
    settings         how the broker is reached, and what pika is told of it
    translation      pika's errors and deliveries become ours
    pika_stand_ins   all that stands in for private parts of pika, and what tells when it no longer does
    allocator        what makes large parts cheap to receive
    alarm            the broker's word that it takes no messages now
    calls            what other threads ask of the thread that owns a connection
    connection       a connection that comes back by itself, owned by a thread
    confirms         what is published and not yet confirmed
    publishing       the publishing side
    declaring        queues declared, asked about and deleted, on channels of their own
    fetching         single messages taken out, on a channel of its own
    consuming        the consuming side: received, acknowledged, restored
    rabbit_link      the Link, put together of its two sides
"""
