"""``python -m anchored``: the same as the command ``anchored``."""

import sys

from anchored.cli.main import main

sys.exit(main())
