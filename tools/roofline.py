"""Compare predicted with measured latency. The same as ``mnv4 roofline``."""

import sys

from _command import command

main = command('roofline')

if __name__ == '__main__':
    sys.exit(main())
