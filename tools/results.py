"""Make tables and plots of transfer records. The same as ``mnv4 results``."""

import sys

from _command import command

main = command('results')

if __name__ == '__main__':
    sys.exit(main())
