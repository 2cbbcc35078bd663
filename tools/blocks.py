"""Measure blocks in each runtime. The same as ``mnv4 blocks``."""

import sys

from _command import command

main = command('blocks')

if __name__ == '__main__':
    sys.exit(main())
