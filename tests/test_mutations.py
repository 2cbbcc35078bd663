"""The planted faults of tests/mutations can be planted: their texts are still in the code, and their tests exist."""

import importlib.util
import sys

import pytest


@pytest.fixture(scope='module')
def faults(repository):
    spec = importlib.util.spec_from_file_location('faults', repository / 'tests/mutations/faults.py')
    module = importlib.util.module_from_spec(spec)
    sys.modules['faults'] = module  # NamedTuple looks its module up
    spec.loader.exec_module(module)
    del sys.modules['faults']
    return module.FAULTS


def test_every_fault_can_be_planted(faults, repository):
    for fault in faults:
        assert (repository / fault.file).read_text().count(fault.old) == 1, fault.name
        assert fault.old != fault.new
        if fault.file.endswith('.py'):
            compile((repository / fault.file).read_text().replace(fault.old, fault.new), fault.file, 'exec')


def test_the_tests_of_every_fault_exist(faults, repository):
    for fault in faults:
        paths = [part for part in fault.tests if part.startswith('tests/')]
        assert paths
        assert all((repository / path).exists() for path in paths), fault.name


def test_there_are_faults_in_all_subpackages(faults, repository):
    assert len(faults) >= 30
    assert len({fault.name for fault in faults}) == len(faults)
    subpackages = {path.parent.name for path in repository.glob('mnv4_mm/*/__init__.py')}
    assert {fault.file.split('/')[1] for fault in faults} >= subpackages | {'images.py'}
