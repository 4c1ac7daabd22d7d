"""Flower's side of a client; Flower starts a process of it for every message."""

from functools import cache

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from tests.bench.peers.job import Job
from tests.bench.workload import Answer
from warren_bench import job_of

app = ClientApp()


@cache
def client_of(job: Job, number: int) -> Answer:
    """Made ready once a process."""
    return job.client(number)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer one round."""
    answer = client_of(job_of(context), int(context.node_config["partition-id"]))
    round_number = int(message.content["config"]["server-round"])
    arrays = answer(message.content["arrays"].to_numpy_ndarrays(), round_number)
    # FedAvg weighs by it; the sites' files are equally large.
    content = {"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 1})}
    return Message(RecordDict(content), reply_to=message)
