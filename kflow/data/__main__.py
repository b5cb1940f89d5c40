"""The command line: prepare a data set from its public source."""

import sys

from kflow.data.files import PREPARED, prepare

if __name__ == "__main__":
    if sys.argv[1:2] != ["prepare"] or len(sys.argv) not in (3, 4):
        raise SystemExit(f"usage: python -m kflow.data prepare {{{','.join(PREPARED)}}} [SOURCE]")
    try:
        print(prepare(*sys.argv[2:]))
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None
