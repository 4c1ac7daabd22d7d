"""The ground floor: how messages look and travel between the coordinator and its workers.

Contents:
    errors      every error that a user can meet, and its exit code
    names       worker names, queue names, and who may act for whom
    tensors     weights as one float32 vector: trainable ones, statistics, frozen ones
    kinds       which of these a Keras model's weights are
    scores      counts of a classifier's answers that add up over workers
    likeness    whether sites hold the same kind of examples
    codec       msgpack, the only file that imports it
    fields      dataclasses to plain values and back
    versions    which wire is spoken here, and what is said to another version
    messages    what travels, one frozen dataclass per message
    transfer    a vector cut into parts, encoded, and put together again
    link        the seam: what a role may ask of a broker
    memory      a Link inside one process, for unit tests
    rabbitmq    the Link over RabbitMQ, the only file that imports pika
    inbox       deliveries judged by form and sender
    standstill  since when the broker takes no messages
    claim       the proof of being the one reader of a queue
    mail        publishing that outlives a lost connection
    archive     the one reader of a .keras archive
    card        what a saved model says about itself
    allowlist   which parts of Keras a model may be made of
    loss        a compiled loss: its name, and how it wants labels
    ending      the activation that a model ends with
    head        outputs read as probabilities, decided once from the model
    allocator   what makes large parts cheap to receive
    management  RabbitMQ's management API: policies, users, permissions
    accounts    least-privilege accounts for workers
    address     a broker's address, checked and shown without its password
    probe       what answers at an AMQP address
    private     a rabbitmq-server of one's own
    container   a broker in a container
    server      a broker to work with: found, contained, or private
    command     what the three command lines share
    web         what the two pages share; static/page.css is how they look alike
    disk        what must outlive a power cut
    logs        the story on stderr
    cli         the command `broker`
"""
