"""Lets `python -m broker` be the command `broker`, where the package is not installed."""

from broker.cli import main

main(prog_name="broker")
