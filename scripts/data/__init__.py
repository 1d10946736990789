"""Data that the commands read or draw."""
