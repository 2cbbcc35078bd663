"""Draw a data set of coloured shapes. The same as ``mnv4 draw``."""

import sys

from _command import command

main = command('draw')

if __name__ == '__main__':
    sys.exit(main())
