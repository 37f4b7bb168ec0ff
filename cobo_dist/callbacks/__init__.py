"""Callbacks: what sees a run while it goes on, and may stop it.

callback            the base class and its config section
early_stopping      stops a run that no longer improves
csv_log, wandb_log, mlflow_log   write metrics elsewhere
registry            all of them by name
"""
