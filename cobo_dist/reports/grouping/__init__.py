"""Sorts runs into groups (the seeds of one method) and problems (one task with one set of settings)."""

from cobo_dist.reports.grouping.groups import METHODS, Group
from cobo_dist.reports.grouping.problems import Problem, group_runs

__all__ = ["METHODS", "Group", "Problem", "group_runs"]
