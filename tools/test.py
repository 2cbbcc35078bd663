"""Evaluate a checkpoint. The same as ``mnv4 test``."""

import sys

from _command import command

main = command('test')

if __name__ == '__main__':
    sys.exit(main())
