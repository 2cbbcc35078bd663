"""From the name or path of a config to the config that runs.

``training_config`` and ``evaluation_config`` load a config and apply their steps in order. A step ``set_...`` modifies
the config it is given and returns it; ``with_...`` is the same step on a copy, for callers that keep their config.
"""
