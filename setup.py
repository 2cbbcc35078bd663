"""Build step that puts the configs and the environment check into the package; all else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


class BuildWithConfigs(build_py):
    """Copies what the package reads from the repository, so that an installed one has it as well."""

    def run(self):
        if self.editable_mode:  # the package is imported from the repository
            super().run()
            return
        package = Path(self.build_lib) / 'mnv4_mm'
        # Files that an earlier build has left may have been deleted since, and all in this folder is packed.
        shutil.rmtree(package, ignore_errors=True)
        super().run()
        shutil.copytree(ROOT / 'configs', package / 'configs', ignore=shutil.ignore_patterns('__pycache__'))
        (package / 'tools').mkdir(exist_ok=True)
        shutil.copy2(ROOT / 'tools' / 'check_env.py', package / 'tools')


setup(cmdclass=dict(build_py=BuildWithConfigs))
