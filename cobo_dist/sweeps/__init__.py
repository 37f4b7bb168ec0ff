"""A grid of trainings: which runs it has, which are done, starting them, choosing the best setting.

axes      command line -> axes; what was typed, checked
grid      axes -> runs: every combination once, validated and named
folders   what a run's folder holds: done, to do again, or another run; a done run's last figures
process   one training as a subprocess, ended as a whole when the sweep is
choice    the best setting of each method, on validation data
tables    sweep.csv, sweep.md and best/*.yaml
campaign  the runs one after another, with a line each

Sees config, to validate before anything starts, and errors. It starts trainings as commands and reads
the files that they leave, so it knows nothing of run, comm, tasks, algorithms or reports.
"""
