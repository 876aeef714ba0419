"""Buckets, explicit and few: each costs a series per label value."""

CALL_SECONDS = (0.005, 0.025, 0.1, 0.5, 2.5, 10, 60)
"""A request to a service, to object storage or to the database."""

WORK_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
"""Whatever takes as long as the model is big: training, folding, a phase."""
