"""FLARE's side of a client: a script that FLARE starts once in each site's process."""

import sys
from pathlib import Path

import nvflare.client as flare

from tests.bench.peers.job import Job


def main(weights: int, clients: int, folder: str) -> None:
    """Answer every round."""
    flare.init()
    number = int(flare.get_site_name().removeprefix("site-")) - 1
    answer = Job(weights=weights, clients=clients, rounds=0, folder=Path(folder)).client(number)
    while flare.is_running():
        model = flare.receive()
        if model is None:
            break
        arrays = [model.params[str(place)] for place in range(len(model.params))]
        answered = enumerate(answer(arrays, model.current_round))
        # FedAvg weighs by the steps; the sites' files are equally large.
        flare.send(
            flare.FLModel(
                params={str(place): array for place, array in answered},
                metrics={"loss": 0.0},
                meta={"NUM_STEPS_CURRENT_ROUND": 1},
            )
        )


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
