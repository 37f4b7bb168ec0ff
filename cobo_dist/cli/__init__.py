"""Parsers and printed pages of the commands."""
