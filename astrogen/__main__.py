"""`python -m astrogen` is the command `astrogen`."""

import sys

from astrogen.cli import main

sys.exit(main())
