"""Compare exported files with PyTorch. The same as ``mnv4 compare``."""

import sys

from _command import command

main = command('compare')

if __name__ == '__main__':
    sys.exit(main())
