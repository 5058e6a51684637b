"""Hydra plugin of navsim-recogdrive (``hydra_plugins`` itself is a namespace package and has no ``__init__.py``)."""
