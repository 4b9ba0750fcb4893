"""Bytes between our own processes: framing and the messages of each conversation."""
