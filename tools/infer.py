"""Run a model on images or a video. The same as ``mnv4 infer``."""

import sys

from _command import command

main = command('infer')

if __name__ == '__main__':
    sys.exit(main())
