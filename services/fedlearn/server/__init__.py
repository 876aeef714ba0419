"""The coordinator: tasks, fleet, rounds, model versions. It never sees an update."""
