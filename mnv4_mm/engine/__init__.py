"""The Runner, hooks, mixed precision and metrics. ``registration`` imports these modules as soon as mmengine is."""
