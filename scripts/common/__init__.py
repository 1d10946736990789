"""What several commands share: arguments, checkpoints, precision."""
