"""The floor: the same bytes through the same broker with nothing but pika; no weights, no checks, no sum.

python -m tests.bench.floor --amqp-url URL --megabytes 100 --workers 8 --rounds 3
"""

import json
import os
import statistics
import subprocess
import sys
import time

import click
import pika

PART = 4 * 1024 * 1024
PERSISTENT = 2


def connect(
    amqp_url: str,
) -> tuple[pika.BlockingConnection, pika.adapters.blocking_connection.BlockingChannel]:
    """One connection and one channel with confirms."""
    connection = pika.BlockingConnection(pika.URLParameters(amqp_url))
    channel = connection.channel()
    channel.confirm_delivery()
    return connection, channel


def echo(amqp_url: str, name: str, parts: int, rounds: int) -> None:
    """A worker: takes all parts of a round, sends as many back, and says so."""
    connection, channel = connect(amqp_url)
    body = os.urandom(PART)
    properties = pika.BasicProperties(delivery_mode=PERSISTENT)
    channel.basic_qos(prefetch_count=0)
    received = 0
    for method, _, _ in channel.consume(f"down.{name}"):
        received += 1
        if received % parts:
            continue
        channel.basic_ack(method.delivery_tag, multiple=True)
        for _ in range(parts):
            channel.basic_publish("", f"up.{name}", body, properties)
        channel.basic_publish("", "done", name.encode(), properties)
        if received == parts * rounds:
            break
    connection.close()


def play(amqp_url: str, names: list[str], parts: int, rounds: int) -> list[float]:
    """The coordinator: publishes once for all, and takes out what comes back; seconds a round."""
    connection, channel = connect(amqp_url)
    body, seconds = os.urandom(PART), []
    properties = pika.BasicProperties(
        delivery_mode=PERSISTENT, headers={"BCC": [f"down.{name}" for name in names[1:]]}
    )
    for _ in range(rounds):
        begun, done = time.monotonic(), 0
        for _ in range(parts):
            channel.basic_publish("", f"down.{names[0]}", body, properties)
        while done < len(names):
            method, _, name = channel.basic_get("done")
            if method is None:
                connection.sleep(0.002)
                continue
            for _ in range(parts):
                part, _, _ = channel.basic_get(f"up.{name.decode()}")
                channel.basic_ack(part.delivery_tag)
            channel.basic_ack(method.delivery_tag)
            done += 1
        seconds.append(time.monotonic() - begun)
    connection.close()
    return seconds


@click.command()
@click.option("--amqp-url", required=True)
@click.option("--megabytes", type=int, default=100, show_default=True)
@click.option("--workers", type=int, default=8, show_default=True)
@click.option("--rounds", type=int, default=3, show_default=True)
@click.option("--be", hidden=True)
def main(amqp_url: str, megabytes: int, workers: int, rounds: int, be: str | None) -> None:
    """Measure the floor."""
    parts = -(-megabytes * 1_000_000 // PART)
    if be is not None:
        echo(amqp_url, be, parts, rounds)
        return
    names = [f"w{number}" for number in range(workers)]
    connection, channel = connect(amqp_url)
    for queue in ["done", *(f"{way}.{name}" for name in names for way in ("down", "up"))]:
        channel.queue_declare(queue, durable=True)
    connection.close()
    again = [sys.executable, "-m", "tests.bench.floor", *sys.argv[1:], "--be"]
    processes = [subprocess.Popen([*again, name]) for name in names]
    try:
        seconds = play(amqp_url, names, parts, rounds)
    finally:
        for process in processes:
            process.kill()
    told = {
        "workers": workers,
        "megabytes": megabytes,
        "median_seconds": round(statistics.median(seconds[1:]), 3),
    }
    print(json.dumps({**told, "round_seconds": [round(each, 3) for each in seconds]}))


if __name__ == "__main__":
    main()
