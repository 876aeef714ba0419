"""The secure aggregator: opens, checks and folds updates, and publishes models."""
