"""`python -m haste.cli`, the same as `haste`."""

import sys

from haste.cli import main

sys.exit(main())
