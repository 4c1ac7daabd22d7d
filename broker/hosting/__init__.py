"""A broker to work with: found, contained or private, its accounts, and what answers at an address.

Contents:
    server       a broker to work with: found, contained, or private
    private      a rabbitmq-server of one's own
    container    a broker in a container
    management   RabbitMQ's management API: policies, users, permissions
    accounts     least-privilege accounts for workers
    probe        what answers at an AMQP address
"""
