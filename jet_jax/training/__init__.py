"""From a config to trained parameters."""
