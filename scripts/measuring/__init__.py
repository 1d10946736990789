"""Metrics, memory, reports and the parts of the benchmark."""
