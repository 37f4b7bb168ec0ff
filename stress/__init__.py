"""The parts of `python -m stress`: what can go wrong with a run, made to go wrong on purpose.

    ranks.py        ranks started within a fraction of a second, watched, killed, read
    problem.py      the small run that all parts share, and whether two runs came to the same
    outcome.py      one row of the table
    kills.py        SIGKILL to a random rank at a random moment, again and again
    resuming.py     2 N rounds are N + N on any other number of ranks
    corruption.py   checkpoints with a file cut, removed or changed by one bit
    endings.py      full disk, stopped rank, port in use and others: who says what, and when
    fuzz.py         random configs and files through the front door (made by texts.py and files.py)
    soak.py         a long run's memory and open files

Each part is a function of sizes and a folder to work in, which returns rows of the table.
"""
