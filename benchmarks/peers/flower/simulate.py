"""The app on Flower's simulation engine: `NULL_CLIENTS=10 … python simulate.py`, in Flower's environment."""

import os

from flwr.simulation import run_simulation
from null_app.apps import client, server

if __name__ == "__main__":
    run_simulation(
        server_app=server,
        client_app=client,
        num_supernodes=int(os.environ["NULL_CLIENTS"]),
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
