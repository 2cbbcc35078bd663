"""Measure speed as ratios. The same as ``mnv4 bench``."""

import sys

from _command import command

main = command('bench')

if __name__ == '__main__':
    sys.exit(main())
