"""Train many backbones under one recipe, and record their scores. The same as ``mnv4 transfer``."""

import sys

from _command import command

main = command('transfer')

if __name__ == '__main__':
    sys.exit(main())
