"""Trainings: models, runs, cards."""
