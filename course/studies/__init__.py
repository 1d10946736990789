"""What trains longer than a minute: studies of small models, recorded run by run in `course/results/`."""
