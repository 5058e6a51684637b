"""``python -m navsim_recogdrive.plan``."""

import sys

from navsim_recogdrive.plan.command import main

if __name__ == "__main__":
    sys.exit(main())
