"""Sorts runs into groups (the seeds of one method) and problems (one task with one set of settings)."""
