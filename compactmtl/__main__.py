"""`python -m compactmtl` is the command line."""

import sys

from compactmtl.cli.main import main

sys.exit(main())
