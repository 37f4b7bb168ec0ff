"""A grid of runs, and the best setting of each method.

axes       command line -> axes
grid       axes -> runs: every combination once, validated and named
folders    what a run folder holds: a finished run, an unfinished one or another run
process    one training as a subprocess
selection  the best setting of each method, by validation scores
tables     sweep.csv, sweep.md and best/*.yaml
runner     runs the sweep and prints a line for each run

A sweep starts trainings as commands and reads the files that they leave. It imports `config`, to validate all
runs before the first one starts, and `errors`.
"""
