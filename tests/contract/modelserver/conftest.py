"""Fixtures of the model server's contract tests."""

from rigging import client, make_rig, rig

__all__ = ["client", "make_rig", "rig"]
