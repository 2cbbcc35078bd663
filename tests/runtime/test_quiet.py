"""Output of native code is discarded; that of Python and exceptions are not lost."""

import os
import sys

import pytest

from mnv4_mm.runtime.quiet import without_native_stderr


def test_native_stderr_is_discarded(capfd):
    with without_native_stderr():
        os.write(2, b'from native code\n')
    os.write(2, b'afterwards\n')
    with pytest.raises(ValueError, match='raised inside'), without_native_stderr():
        raise ValueError('raised inside')
    print('of Python', file=sys.stderr)
    assert capfd.readouterr().err == 'afterwards\nof Python\n'


def test_a_closed_stderr_is_no_error(capfd):
    saved = os.dup(2)
    os.close(2)
    try:
        with without_native_stderr():
            entered = True
    finally:
        os.dup2(saved, 2)
        os.close(saved)
    assert entered
