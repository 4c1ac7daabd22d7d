"""The Link over RabbitMQ; the only room that imports pika.

Contents:
    rabbit_link   the Link over RabbitMQ
    allocator     what makes large parts cheap to receive
"""
