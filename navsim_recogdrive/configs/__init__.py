"""Hydra configs, put on the search path of every NAVSIM runner by the plugin."""
