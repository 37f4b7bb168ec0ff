"""FedAvg in other people's simulators, on the same models, batches and steps; `peers.py` measures them.

| file | content |
|---|---|
| `work.py` | the problems, and one as a file: start, batches, learning rate |
| `install.py` | an environment for each peer |
| `flower_side.py`, `pfl_side.py` | a run of each, in its own environment, which writes what it took |
"""
