"""``python -m lightning_glassy`` is the command ``lightning-glassy``."""

import sys

from lightning_glassy.cli import main

if __name__ == "__main__":
    sys.exit(main())
