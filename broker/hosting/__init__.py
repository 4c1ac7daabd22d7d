"""A broker to work with: found, contained or private, its accounts, and what answers at an address.

Contents:
    server       a broker to work with: found, contained, or private
    starting     how they are started: one at a time, or several as one
    private      a rabbitmq-server of one's own
    container    a broker in a container
    api          one request to RabbitMQ's management API
    management   what it tells of a broker, and what is set there
    policies     how much may wait at the broker, and for how long
    queues       queues that the admin side makes
    accounts     least-privilege accounts for workers
    certificates an authority of one's own, and what it signs
    encryption   a private broker that others reach, by TLS alone
    probe        what answers at an AMQP address
    commands     commands about brokers, their certificates and who may take part
"""
