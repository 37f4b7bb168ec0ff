"""Reads a run folder for Python code: config, metrics, W and models, of a finished or unfinished run.

run      `Run`: what one run folder holds
logs     metrics.jsonl and W.npz as tables and matrices
models   the saved models
"""
