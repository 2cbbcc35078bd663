"""Load a config by name or path, and turn it into the config of a training or evaluation run.

``training.training_config`` and ``evaluation.evaluation_config`` load a config and apply steps to it in a fixed order.
A step ``set_...`` modifies its argument ``cfg`` and returns it. ``with_...`` is the same step, but modifies a copy.
"""
