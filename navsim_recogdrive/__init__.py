"""ReCogDrive (arXiv 2506.08052) as a plugin for NAVSIM.

Importing this package loads neither torch nor transformers, so that Hydra's start-up stays fast.
"""

__version__ = "0.1.0"
