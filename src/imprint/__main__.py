"""`python -m imprint` is the command `imprint`."""

import sys

from imprint.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
