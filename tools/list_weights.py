"""List the published weights. The same as ``mnv4 weights``."""

import sys

from _command import command

main = command('weights')

if __name__ == '__main__':
    sys.exit(main())
