import dataclasses
import json

import pytest

from mnv4_mm.errors import UserError
from mnv4_mm.runtime.meta import Input, Meta, Resize, Selection, read_meta, sha256, sidecar


@pytest.fixture
def meta():
    return Meta(
        task='detection',
        kind='raw',
        target='onnx',
        precision='fp32',
        classes=('cat', 'dog'),
        input=Input((320, 384), 'NHWC', 'uint8', 'RGB', False, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0)),
        resize=Resize('letterbox', (114, 114, 114)),
        selection=Selection(0.02, 0.45, 200, 0.0, 6000),
        category_ids=(3, 7),
        source=dict(checkpoint='a.pth'),
    )


def test_metadata_survives_a_round_trip(meta):
    dynamic = dataclasses.replace(meta.input, size=None)
    resize = Resize('letterbox', (114, 114, 114), (640, 640))
    for one in (meta, dataclasses.replace(meta, input=dynamic, resize=resize, category_ids=None)):
        assert Meta.from_json(one.to_json(), 'x') == one


def leaves(value, path=()):
    if isinstance(value, dict):
        for key, item in value.items():
            yield (*path, key)
            yield from leaves(item, (*path, key))


def test_every_missing_or_wrong_value_is_one_line(meta):
    """Each key of the JSON is removed, or its value replaced."""
    text = meta.to_json()
    free = {'source', 'files'}  # dicts with any keys
    for path in leaves(json.loads(text)):
        for value in ('removed', {'no': 'such value'}, [[[]]]):
            content = json.loads(text)
            parent = content
            for key in path[:-1]:
                parent = parent[key]
            if value == 'removed':
                if free & set(path[:-1]):
                    continue
                del parent[path[-1]]
            elif isinstance(value, dict) and path[-1] in free:
                continue
            else:
                parent[path[-1]] = value
            with pytest.raises(UserError, match='x cannot be read') as caught:
                Meta.from_json(json.dumps(content), 'x')
            assert '\n' not in str(caught.value)


@pytest.mark.parametrize('text', [b'', b'{', b'[]', b'\xff\xfe', b'null', b'{"format": 2}', b'"format"'])
def test_other_files_are_refused(text):
    with pytest.raises(UserError, match='x cannot be read'):
        Meta.from_json(text, 'x')


def test_a_kind_of_another_task_is_refused(meta):
    for changed in (dict(kind='logits'), dict(selection=None), dict(task='segmentation')):
        with pytest.raises(UserError, match='cannot be read'):
            Meta.from_json(dataclasses.replace(meta, **changed).to_json(), 'x')


def test_a_file_is_the_one_its_json_was_written_for(meta, tmp_path):
    path = tmp_path / 'net.onnx'
    with pytest.raises(UserError, match='no file'):
        read_meta(path)
    path.write_bytes(b'graph')
    with pytest.raises(UserError, match=r'has no net\.onnx\.json beside it'):
        read_meta(path)
    (tmp_path / 'weights.bin').write_bytes(b'weights')
    files = {name: sha256(tmp_path / name) for name in ('net.onnx', 'weights.bin')}
    sidecar(path).write_text(dataclasses.replace(meta, files=files).to_json())
    assert read_meta(path).files == files
    for name in files:
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(bytes([whole[0] ^ 1]) + whole[1:])  # one bit
        with pytest.raises(UserError, match=f'{name} is damaged'):
            read_meta(path)
        (tmp_path / name).write_bytes(whole)
    (tmp_path / 'weights.bin').unlink()
    with pytest.raises(UserError, match=r'weights\.bin is missing'):
        read_meta(path)
    for files in ({}, {'../net.onnx': 'x'}):
        sidecar(path).write_text(dataclasses.replace(meta, files=files).to_json())
        with pytest.raises(UserError, match='cannot be read'):
            read_meta(path)
