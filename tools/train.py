"""Train a config. The same as ``mnv4 train``."""

import sys

from _command import command

main = command('train')

if __name__ == '__main__':
    sys.exit(main())
