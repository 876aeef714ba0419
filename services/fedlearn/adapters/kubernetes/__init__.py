"""Kubernetes, by its own Python client: nothing outside of this package imports that.

Import it only where a cluster is used: it takes a fifth of a second and 11 MB.
"""
