"""Checkpoints written while a run goes on, and runs that go on from one."""
