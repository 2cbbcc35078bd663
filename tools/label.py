"""Label many images. The same as ``mnv4 label``."""

import sys

from _command import command

main = command('label')

if __name__ == '__main__':
    sys.exit(main())
