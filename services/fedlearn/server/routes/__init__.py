"""The server's API, a module per kind of caller."""
