"""Composition, train loop, migration, and how a run starts and ends."""
