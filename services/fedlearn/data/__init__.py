"""Datasets, partitioners and the shards that devices hold."""
