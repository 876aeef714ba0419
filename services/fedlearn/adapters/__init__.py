"""The places that touch the outside: object storage, database, identity, HTTP."""
