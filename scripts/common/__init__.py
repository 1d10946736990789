"""Shared by several commands: arguments, checkpoints, precision."""
