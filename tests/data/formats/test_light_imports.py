"""Data sets are recognised before anything heavy is imported, so that a user's mistake is reported at once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mnv4_mm.data.formats.ade20k_classes import ADE20K_CLASSES

HEAVY = ('torch', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'timm', 'faster_coco_eval')
FUNCTIONS = dict(coco=('prepare', 'prepare_detection'), ade=('prepare_masks', 'prepare_masks'))
# Prints what the search returned or raised, and the heavy modules it left in memory.
SCRIPT = """
import json, sys
from mnv4_mm.data.{module} import {function}
from mnv4_mm.errors import UserError
try:
    result = len({function}(sys.argv[1]).classes)
except UserError as error:
    result = str(error)
print(json.dumps([result, sorted({{name.partition('.')[0] for name in sys.modules}} & set({heavy!r}))]))
"""


def find_in_fresh_process(kind: str, root: Path) -> tuple[int | str, list[str]]:
    module, function = FUNCTIONS[kind]
    script = SCRIPT.format(module=module, function=function, heavy=HEAVY)
    output = subprocess.run([sys.executable, '-c', script, root], capture_output=True, text=True, check=True).stdout
    result, heavy = json.loads(output.splitlines()[-1])
    return result, heavy


@pytest.mark.parametrize(('kind', 'classes'), [('coco', 80), ('ade', 150)])
def test_a_data_set_is_recognised_without_torch(kind: str, classes: int, repository: Path):
    assert find_in_fresh_process(kind, repository / 'data/mini' / kind) == (classes, [])


def test_broken_json_is_reported_without_torch(tmp_path: Path):
    for folder in ('annotations', 'train2017', 'val2017'):
        (tmp_path / folder).mkdir()
    for split in ('train', 'val'):
        (tmp_path / f'annotations/instances_{split}2017.json').write_text('{"images": [')
    message, heavy = find_in_fresh_process('coco', tmp_path)
    assert 'instances_train2017.json is not JSON' in str(message)
    assert heavy == []


def test_ade20ks_names_are_mmsegs():
    from mmseg.datasets import ADE20KDataset

    assert ADE20KDataset.METAINFO['classes'] == ADE20K_CLASSES
