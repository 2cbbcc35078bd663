"""Entry point of ``python -m mnv4_mm``, which does the same as the command ``mnv4``."""

import sys

from mnv4_mm.cli import main

sys.exit(main())
