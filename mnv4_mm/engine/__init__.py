"""The Runner, hooks, mixed precision and metrics. They are imported when they are first used (see ``registration``)."""
