"""Everything on one machine: the launcher and its object storage."""
