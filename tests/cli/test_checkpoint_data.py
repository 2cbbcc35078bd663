"""Data sets and options that do not fit a checkpoint are reported before torch is imported."""

import dataclasses
import json
import pickle
import shutil
import subprocess
import sys

import pytest
from stub_checkpoint import write_stub_checkpoint
from stub_file import write_detector

from mnv4_mm.config import rules
from mnv4_mm.config.rules import check_device
from mnv4_mm.config.source import read_checkpoint_source
from mnv4_mm.data import documents
from mnv4_mm.digest import file_digest
from mnv4_mm.errors import UserError
from mnv4_mm.runtime.meta import read_meta, sidecar

CONFIG = "default_scope = 'mmdet'\ntest_dataloader = dict(batch_size=1)\nown_data = dict(root='/gone')\n"
CALL = """
import json, sys
from mnv4_mm.cli import main
for arguments in json.loads(sys.argv[1]):
    print('code', main(arguments), file=sys.stderr)
    assert 'torch' not in sys.modules and 'mmengine' not in sys.modules, arguments
"""
CASES = {
    'test net.pth --data broken': 'instances_train.json is not JSON',
    'test net.pth --data gone': 'no folder gone',
    'test net.pth --data masks': 'masks is empty; expected one of',
    'test net.pth': 'the data set of this config: no folder /gone',
    'test net.pth --cfg-options nope.x=1': "the config has no 'nope'",
    'report net.pth --data broken': 'instances_train.json is not JSON',
    'report run --data gone': 'no folder gone',
    'report .': 'no checkpoint in .: name the work directory of a run',
    'report damaged': 'no checkpoint in damaged can be read: damaged/epoch_6.pth is truncated',
    'compare net.pth net.onnx --data broken': 'instances_train.json is not JSON',
    'test net.pth --inference slide': '--inference is for segmentation',
    'infer image.jpg net.pth --inference slide': '--inference is for segmentation',
    'infer image.jpg net.pth --config mnv4_ssdlite_coco --inference slide': '--inference is for segmentation',
    'export net.pth --class-map': '--class-map does not fit detection in onnx',
    'export net.pth --config mnv4_fpn_ade20k --raw': '--raw does not fit segmentation in onnx',
    'search run net.pth': 'not the checkpoint of a supernet',
    'search profile net.pth': 'not the checkpoint of a supernet',
    'search profile net.pth --browser pages': 'not the checkpoint of a supernet',
    'test mnv4_lraspp_ade20k-mini net.pth': "trained with default_scope 'mmdet', and this config has 'mmseg'",
    'train mnv4_ssdlite_coco-mini --work-dir /proc/x': '--work-dir /proc/x cannot be made',
    'test mnv4_ssdlite_bccd': 'is a config, and CHECKPOINT is missing: mnv4 test mnv4_ssdlite_bccd CHECKPOINT',
    'test config.py': 'is a config, and CHECKPOINT is missing',
    'results empty.jsonl': 'empty.jsonl is empty: it has no record of a run',
    'label net.pth image.jpg --out labels': 'net.pth is a checkpoint: export it first, mnv4 export net.pth',
    'train mnv4_ssdlite_coco-mini --backbone timm:': "no backbone 'timm:': name a timm net after the colon",
    'search train mnv4_ssdlite_coco-mini --qat net.pth': '`mnv4 search train` and --qat exclude each other: a net is',
    'train mnv4_ssdlite_coco': 'instances_train2017.json is not JSON',
    'train mnv4_ssdlite_coco-mini --work-dir damaged --resume': 'no checkpoint in damaged can be read',
    'train mnv4_ssdlite_coco-mini --cfg-options work_dir=damaged --resume': 'no checkpoint in damaged can be read',
    'train mnv4_ssdlite_coco-mini --backbone mnv4_conv_l --resume': 'no checkpoint in work_dirs/mnv4_ssdlite_coco-mini',
    **{
        f'{command} changed.pth{rest}': 'changed.pth is damaged: net/data.pkl in this archive does not match'
        for command, rest in {
            'train mnv4_ssdlite_coco-mini --resume': '',
            'train mnv4_ssdlite_coco-mini --weights': '',
            'train mnv4_ssdlite_coco-mini --teacher': '',
            'train mnv4_ssdlite_coco-mini --qat': '',
            'test': '',
            'infer image.jpg': '',
            'export': ' --to onnx',
            'compare': ' net.onnx',
            'report': '',
            'spread': ' spread.pth',
            'search run': '',
        }.items()
    },
    'train mnv4_ssdlite_coco-mini --weights empty.safetensors': 'empty.safetensors is not a readable safetensors file',
    'test foreign.pth': 'foreign.pth is refused: it is a pickle, but was not written by torch.save',
}


def test_mistakes_are_reported_without_torch(repository, tmp_path):
    write_stub_checkpoint(tmp_path / 'net.pth', {'epoch': 1, 'cfg': CONFIG})
    path = write_detector(tmp_path / 'net.onnx')
    meta = dataclasses.replace(read_meta(path), source=dict(sha256=file_digest(tmp_path / 'net.pth').hexdigest()))
    sidecar(path).write_text(meta.to_json())
    for path in ('broken/annotations/instances_train.json', 'data/coco/annotations/instances_train2017.json'):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text('{"images": [')
    for path in ('data/coco/train2017', 'masks'):
        (tmp_path / path).mkdir(parents=True)
    shutil.copy(min((repository / 'data/mini/coco/val2017').glob('*.jpg')), tmp_path / 'image.jpg')
    (tmp_path / 'config.py').write_text('x = 1')
    for name in ('empty.jsonl', 'empty.safetensors'):
        (tmp_path / name).touch()
    for folder in ('run', 'damaged', 'work_dirs/mnv4_ssdlite_coco-mini_mnv4_conv_l'):
        (tmp_path / folder).mkdir(parents=True)
    content = write_stub_checkpoint(tmp_path / 'run/epoch_6.pth').read_bytes()
    (tmp_path / 'foreign.pth').write_bytes(pickle.dumps({}, protocol=2))
    (tmp_path / 'changed.pth').write_bytes(content.replace(b'meta', b'mate'))
    for folder in ('damaged', 'work_dirs/mnv4_ssdlite_coco-mini_mnv4_conv_l'):
        (tmp_path / folder / 'epoch_6.pth').write_bytes(content[:50])
    before = sorted(tmp_path.rglob('*'))
    lines = [case.split() for case in CASES]
    done = subprocess.run(
        [sys.executable, '-c', f'import sys; sys.path.insert(0, {str(repository)!r}){CALL}', json.dumps(lines)],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert sorted(tmp_path.rglob('*')) == before
    errors, codes = done.stderr.splitlines()[::2], done.stderr.splitlines()[1::2]
    assert codes == ['code 2'] * len(CASES)
    for error, message in zip(errors, CASES.values(), strict=True):
        assert message in error


@pytest.mark.parametrize('text', ['for i in range(3): x = i', 'x = sum(range(3))', 'x = [i for i in [1]]', '(' * 9999])
def test_the_config_in_a_checkpoint_is_not_run(text, tmp_path):
    path = tmp_path / 'net.pth'
    for cfg, expected in (
        (text, None),
        ("x = dict(y=[1, (2.5, None)])\nz = {'a': -1}", dict(x=dict(y=[1, (2.5, None)]), z={'a': -1})),
    ):
        write_stub_checkpoint(path, {'epoch': 1, 'cfg': cfg})
        assert read_checkpoint_source(path) == expected


@pytest.mark.parametrize('content', ['', '[1, 2', '{"images": []'])
def test_a_large_json_file_is_looked_at_only_at_its_end(content, tmp_path, monkeypatch):
    monkeypatch.setattr(documents, 'PARSED_BYTES', -1)
    path = tmp_path / 'large.json'
    path.write_text(content + ' ' * 200)
    with pytest.raises(UserError, match='not JSON'):
        documents.check_json(path)
    path.write_text(' ' * 200 + '{"images": []}\n')
    documents.check_json(path)


def test_a_gpu_without_a_driver_is_refused(monkeypatch):
    monkeypatch.setattr(rules, 'may_have_gpu', lambda: False)
    check_device('cpu')
    check_device('mps')
    with pytest.raises(UserError, match='--device cuda:1 cannot be used: this machine has no driver'):
        check_device('cuda:1')
    monkeypatch.setattr(rules, 'may_have_gpu', lambda: True)
    check_device('cuda:1')
