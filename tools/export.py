"""Convert a checkpoint for other runtimes. The same as ``mnv4 export``."""

import sys

from _command import command

main = command('export')

if __name__ == '__main__':
    sys.exit(main())
