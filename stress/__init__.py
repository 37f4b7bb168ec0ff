"""The parts of `python -m stress`: each causes one kind of failure on purpose and checks the result.

    ranks.py        ranks that start within a fraction of a second, and can be watched and killed
    problem.py      the small run that all parts share, and the comparison of two runs
    outcome.py      one row of the table
    kills.py        SIGKILL to a random rank at a random moment, again and again
    points.py       the same at named points: connecting, first round, saving and others
    launched.py     the same under a real torchrun, which restarts workers; nodes that join and leave
    resuming.py     2 N rounds equal N + N on any other number of ranks
    corruption.py   checkpoints with a file truncated, removed or changed by one bit
    endings.py      full disk, stopped rank, port in use and others: exit codes, messages and times
    fuzz.py         random configs and malformed files, from texts.py and files.py
    soak.py         memory and open files of a long run

Each part is a function of sizes and a working folder, which returns rows of the table.
"""
