"""``python -m inrun.conformance``: the table of cases and engines."""

import sys

from inrun.conformance.run import main

if __name__ == "__main__":
    sys.exit(main())
