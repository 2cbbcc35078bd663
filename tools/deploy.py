"""Export by mmdeploy. The same as ``mnv4 deploy``."""

import sys

from _command import command

main = command('deploy')

if __name__ == '__main__':
    sys.exit(main())
