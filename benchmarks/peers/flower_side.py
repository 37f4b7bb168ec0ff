"""FedAvg in Flower's simulation: python -m peers.flower_side PROBLEM FOLDER WORKERS."""

from __future__ import annotations

import functools
import sys
from collections import OrderedDict
from importlib.metadata import version

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import nn

from peers.work import LEARNING_RATE, Problem, now, write_result

app = ClientApp()


@functools.lru_cache(maxsize=1)
def problem_of(path: str) -> Problem:
    """Return the problem; a worker reads it once."""
    torch.set_num_threads(1)
    return Problem(path)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Take one client's step from the received model."""
    about = message.content["config"]
    problem = problem_of(str(about["problem"]))
    client, t = int(context.node_config["partition-id"]), int(about["server-round"]) - 1
    model = problem.model.train()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict(), strict=False)
    inputs, targets = problem.batch(t, client)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    loss = nn.functional.cross_entropy(model(inputs), targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    metrics = MetricRecord({"num-examples": len(targets), "loss": loss.item()})
    content = RecordDict({"arrays": parameters_of(model), "metrics": metrics})
    return Message(content=content, reply_to=message)


def parameters_of(model: nn.Module) -> ArrayRecord:
    """Return what is sent: all parameters, but not BatchNorm's statistics, as in cobo_dist."""
    return ArrayRecord(OrderedDict((name, one.detach()) for name, one in model.named_parameters()))


def main() -> None:
    """Train and write the result."""
    path, folder, workers = sys.argv[1:]
    problem = problem_of(path)
    ends: list[float] = []
    server = ServerApp()

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        strategy = FedAvg(
            fraction_train=1.0,
            fraction_evaluate=0.0,
            min_train_nodes=problem.clients,
            min_available_nodes=problem.clients,
        )
        # Flower calls `evaluate_fn` before the first round and at the end of each.
        result = strategy.start(
            grid=grid,
            initial_arrays=parameters_of(problem.model),
            num_rounds=problem.rounds,
            train_config=ConfigRecord({"problem": path}),
            evaluate_fn=lambda t, arrays: ends.append(now()),
        )
        last = result.arrays.to_torch_state_dict()
        write_result(folder, ends, last, {"flwr": version("flwr"), "ray": version("ray")})

    run_simulation(
        server_app=server,
        client_app=app,
        num_supernodes=problem.clients,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0},
            "init_args": {"num_cpus": int(workers)},
        },
    )


if __name__ == "__main__":
    # Workers import `train` by the name of its module, and cannot import `__main__`.
    from peers.flower_side import main as run

    run()
