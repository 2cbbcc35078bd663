"""Compare every headline model in every runtime: the table of docs/parity.md. The same as ``mnv4 parity``."""

import sys

from _command import command

main = command('parity')

if __name__ == '__main__':
    sys.exit(main())
