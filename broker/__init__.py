"""The ground floor: how messages look and travel between the coordinator and its workers.

Contents:
    errors      every error that a user can meet, and its exit code
    names       worker names, queue names, and who may act for whom
    tensors     weights as one float32 vector, cut into parts
    codec       msgpack, the only file that imports it
    messages    what travels, one frozen dataclass per message
    link        the seam: what a role may ask of a broker
    memory      a Link inside one process, for unit tests
    rabbitmq    the Link over RabbitMQ, the only file that imports pika
    allocator   what makes large parts cheap to receive
    management  RabbitMQ's management API: policies, users, permissions
    server      a broker to work with: found, contained, or private
    command     what the three command lines share
    web         what the two pages share
    logs        the story on stderr
    cli         the command `broker`
"""
