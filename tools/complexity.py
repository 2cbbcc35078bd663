"""Count parameters and multiply-accumulates. The same as ``mnv4 complexity``."""

import sys

from _command import command

main = command('complexity')

if __name__ == '__main__':
    sys.exit(main())
