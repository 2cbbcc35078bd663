"""Checks that come before heavy imports."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from stub_checkpoint import write_stub_checkpoint

from mnv4_mm.deploy.arguments import check_compare, check_export, check_options
from mnv4_mm.deploy.artifacts import checkpoint_of, find_artifacts
from mnv4_mm.deploy.targets import TARGETS
from mnv4_mm.errors import UserError
from mnv4_mm.report.run import find_exports
from mnv4_mm.runtime.meta import Input, Meta, Resize, sha256, sidecar

META = Meta(
    task='segmentation',
    kind='logits',
    target='onnx',
    precision='fp32',
    classes=('a', 'b'),
    input=Input((64, 64), 'NHWC', 'uint8', 'RGB', False, (0.0,) * 3, (1.0,) * 3),
    resize=Resize('stretch', (0, 0, 0)),
)


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    path = tmp_path / 'net.pth'
    write_stub_checkpoint(path, dict(epoch=1))
    return path


def export_to(path: Path, checkpoint: Path) -> Path:
    """Write a file as ``export`` would, with metadata that names the checkpoint."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b'a graph')
    source = dict(checkpoint=checkpoint.name, sha256=sha256(checkpoint))
    meta = dataclasses.replace(META, source=source, files={path.name: sha256(path)})
    sidecar(path).write_text(meta.to_json())
    return path


def test_files_of_a_checkpoint_are_found(checkpoint):
    folder = checkpoint.parent / 'exported'
    first = export_to(folder / 'net_logits_fp32.onnx', checkpoint)
    second = export_to(folder / 'net_logits_fp16_64x64_normalised.onnx', checkpoint)
    (folder / f'{first.name}.sample.json').write_text('{}')
    (folder / f'{first.name}.layers.json').write_text(json.dumps(dict(layers=[])))
    # A checkpoint whose name begins alike, and an earlier one of the same name.
    other = checkpoint.with_name('net_2.pth')
    write_stub_checkpoint(other, dict(epoch=2))
    export_to(folder / 'net_2_logits_fp32.onnx', other)
    old = checkpoint.parent / 'old' / 'net.pth'
    old.parent.mkdir()
    write_stub_checkpoint(old, dict(epoch=3))
    stale = export_to(folder / 'net_logits_int8.onnx', old)

    found, artifacts = find_artifacts(checkpoint)
    assert found == checkpoint
    assert [artifact.path for artifact in artifacts] == sorted([first, second])
    assert artifacts[0].megabytes == pytest.approx(7e-6)
    # An exported file in place of the checkpoint.
    assert checkpoint_of(first) == checkpoint
    assert [artifact.path for artifact in find_artifacts(first, [second])[1]] == [first, second]
    with pytest.raises(UserError, match=r'exported from another checkpoint: net\.pth'):
        find_artifacts(checkpoint, [stale])


def test_damaged_json_is_named_and_hides_no_other_file(checkpoint):
    folder = checkpoint.parent / 'exported'
    right = export_to(folder / 'net_logits_fp32.onnx', checkpoint)
    damaged = export_to(folder / 'net_logits_int8.onnx', checkpoint)
    sidecar(damaged).write_text(sidecar(damaged).read_text()[:-5])
    with pytest.raises(UserError, match=r'net_logits_int8\.onnx\.json cannot be read'):
        find_artifacts(checkpoint)
    first, second = find_exports(checkpoint, sha256(checkpoint))
    assert (first.file, first.target, first.verdict) == (right.name, META.target, '')
    assert (second.file, second.target) == (damaged.name, '')
    assert 'net_logits_int8.onnx.json cannot be read' in second.verdict


def test_a_changed_file_is_refused(checkpoint):
    path = export_to(checkpoint.parent / 'exported' / 'net_logits_fp32.onnx', checkpoint)
    path.write_bytes(b'a graph!')
    with pytest.raises(UserError, match='is damaged'):
        check_compare(str(checkpoint))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(on='test'), '--on must be val or train'),
        (dict(int8_tolerance=-1.0), 'must not be negative, infinite or NaN, got 0.001, -1 and 20'),
        (dict(tolerance=float('nan')), 'must not be negative'),
        (dict(tolerance=float('inf')), 'must not be negative, infinite'),
        (dict(rounds=-1), 'must not be negative'),
        (dict(out='/no/such/folder/table.json'), 'no folder /no/such/folder'),
        (dict(out='/'), 'is a folder'),
        (dict(npu=['npu9000']), '--npu npu9000: there are ethos-u55-32, .*hexagon-v79'),
        (dict(npu=['']), 'empty'),
    ],
)
def test_mistakes_of_compare(options, message, checkpoint):
    export_to(checkpoint.parent / 'exported' / 'net_logits_fp32.onnx', checkpoint)
    check_compare(str(checkpoint))
    with pytest.raises(UserError, match=message):
        check_compare(str(checkpoint), **options)


@pytest.mark.parametrize(
    ('to', 'options', 'message'),
    [
        (['tensorrt'], {}, '--to tensorrt: there are onnx'),
        (['onnx'], dict(precision='int4'), '--precision must be one of fp32, fp16, bf16, int8'),
        (['onnx'], dict(size=(100, 320)), 'multiples of 32'),
        (['onnx'], dict(size=(320, 320), dynamic=True), 'exclude each other'),
        (['onnx'], dict(plain_int8=True), '--plain-int8 goes with --precision int8, not fp32'),
        (['onnx'], dict(precision='int8', calibration='/no/such'), 'no images for calibration in /no/such'),
        (['onnx'], dict(out_dir=__file__), 'is not a folder'),
    ],
)
def test_mistakes_of_export(to, options, message, checkpoint):
    with pytest.raises(UserError, match=message):
        check_export(str(checkpoint), to, **options)
    assert list(checkpoint.parent.iterdir()) == [checkpoint]


def test_a_missing_checkpoint_is_one_line(tmp_path):
    for check in (lambda path: check_export(path, ['onnx']), check_compare):
        with pytest.raises(UserError, match='no checkpoint file at'):
            check(str(tmp_path / 'gone.pth'))


@pytest.mark.parametrize(('content', 'message'), [(b'', 'empty'), (b'a text', 'neither a zip archive nor a pickle')])
def test_a_file_that_is_no_checkpoint_is_refused_without_torch(content, message, checkpoint):
    checkpoint.write_bytes(content)
    for check in (lambda path: check_export(path, ['onnx']), check_compare):
        with pytest.raises(UserError, match=f'net.pth is not a checkpoint: it is {message}'):
            check(str(checkpoint))


def test_a_missing_package_is_one_line(checkpoint, monkeypatch):
    monkeypatch.setattr(type(TARGETS['ncnn']), 'absent', lambda *_, **__: 'ncnn is not installed here: pip install it')
    with pytest.raises(UserError, match='ncnn is not installed here'):
        check_export(str(checkpoint), ['ncnn', 'onnx'])


def test_options_that_a_target_lacks():
    with pytest.raises(UserError, match='--nms does not fit ncnn, which has raw, logits'):
        check_options(TARGETS['ncnn'], kind='nms')
    with pytest.raises(UserError, match='--precision bf16 does not fit ncnn'):
        check_options(TARGETS['ncnn'], precision='bf16')
    with pytest.raises(UserError, match='--dynamic does not fit ncnn'):
        check_options(TARGETS['ncnn'], dynamic=True)


@pytest.mark.parametrize(
    'module', ['deploy.arguments', 'deploy.artifacts', 'bench.parts', 'report.recipes', 'runtime.meta']
)
def test_the_checks_need_neither_torch_nor_openmmlab(module, repository):
    code = (
        'import sys, types\n'
        "for name in ('torch', 'torchvision', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'timm', 'onnx', 'onnxruntime'):\n"
        '    sys.modules[name] = None\n'
        # The package without its __init__, which may register with OpenMMLab.
        "sys.modules['mnv4_mm'] = package = types.ModuleType('mnv4_mm')\n"
        f'package.__path__ = [{str(repository / "mnv4_mm")!r}]\n'
        f'import mnv4_mm.{module}\n'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
