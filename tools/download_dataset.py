"""Download a public data set. The same as ``mnv4 download``."""

import sys

from _command import command

main = command('download')

if __name__ == '__main__':
    sys.exit(main())
