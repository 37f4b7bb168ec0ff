"""Callbacks: what sees a run while it goes on, and may stop it.

callback            the base class and its config section
early_stopping      stops a run that no longer improves
csv_log, wandb_log, mlflow_log   write metrics elsewhere
registry            all of them by name
"""

from cobo_dist.callbacks.callback import Callback, CallbackSection
from cobo_dist.callbacks.csv_log import CsvLog
from cobo_dist.callbacks.early_stopping import EarlyStopping
from cobo_dist.callbacks.mlflow_log import MlflowLog
from cobo_dist.callbacks.wandb_log import WandbLog

__all__ = ["Callback", "CallbackSection", "CsvLog", "EarlyStopping", "MlflowLog", "WandbLog"]
