"""Sorts runs into groups and problems.

A group is the seeds of one method with one set of settings; a problem is one task with one set of settings.

settings   which settings count, how runs differ, settings as text
groups     runs -> groups, named by the settings that differ
problems   groups -> problems, each task's main problem first
"""

from cobo_dist.reports.grouping.groups import Group
from cobo_dist.reports.grouping.problems import Problem, group_runs

__all__ = ["Group", "Problem", "group_runs"]
