"""A process that hosts devices: check in, train, seal, upload."""
