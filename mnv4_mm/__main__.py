"""``python -m mnv4_mm`` is ``mnv4``."""

import sys

from mnv4_mm.cli import main

sys.exit(main())
