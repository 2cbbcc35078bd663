"""From the name or path of a config to the config that runs. Each step takes a config and returns another."""
