"""Search for a net between the published ones. The same as ``mnv4 search``."""

import sys

from _command import command

main = command('search')

if __name__ == '__main__':
    sys.exit(main())
