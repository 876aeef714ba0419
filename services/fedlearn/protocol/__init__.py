"""What crosses the wire: messages, plans, tensors, envelopes, tickets, problems."""
