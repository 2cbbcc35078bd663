"""JSON, YAML, XML and text files of users: every encoding is read, and every fault is one line that names the file."""

import json
import math
import re
import time

import pytest

from mnv4_mm.data import documents
from mnv4_mm.data.documents import read_json, read_text, read_xml, read_yaml
from mnv4_mm.errors import UserError


def error_of(read, path, content):
    """Write a file, read it, and return the message without the path, which it begins with."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    begin = time.process_time()
    with pytest.raises(UserError) as error:
        read(path)
    assert time.process_time() - begin < 2
    message = str(error.value)
    assert message.startswith(str(path))
    assert '\n' not in message
    assert len(message) < 400
    return message.removeprefix(str(path))


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be', 'utf-32'])
def test_json_in_each_encoding(tmp_path, encoding):
    content = dict(name='Zellen äß 細胞', values=[1, 2.5, None, True])
    path = tmp_path / 'a.json'
    path.write_bytes(json.dumps(content, ensure_ascii=False).encode(encoding))
    assert read_json(path) == content


def test_json_numbers_that_are_no_json(tmp_path):
    path = tmp_path / 'a.json'
    path.write_text('[NaN, Infinity, -Infinity, 1e999]')
    values = read_json(path)
    assert math.isnan(values[0])
    assert values[1:] == [math.inf, -math.inf, math.inf]


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'', 'is empty'),
        (b'\xef\xbb\xbf \n', 'is empty'),
        (b'{"images": [{"id": 1', 'is not JSON: .*ends too early'),
        (b'{"images": "abc', 'is not JSON: .*ends too early'),
        (b"{'images': []}", r'is not JSON: .*line 1 column 2'),
        (b'{"images": [],}', 'is not JSON'),
        (b'{} {}', 'is not JSON: Extra data'),
        (b'{"name": "\xe4"}', 'neither UTF-8 nor UTF-16'),
        (b'{"a": 1, "b": {"images": [], "images": [1]}}', "the key 'images' occurs twice in one object"),
        (b'[' * 100_000, 'nested too deeply'),
        (b'{"a":' * 100_000, 'nested too deeply'),
        (b'[' + b'9' * 10_000 + b']', 'is not JSON: a number has thousands of digits$'),
        (b'\x80\x04\x95\x00', 'neither UTF-8 nor UTF-16|is not JSON'),
    ],
)
def test_invalid_json(tmp_path, content, message):
    assert re.search(message, error_of(read_json, tmp_path / 'a.json', content))


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    for read in (read_json, read_yaml, read_xml, read_text):
        with pytest.raises(UserError, match='a cannot be read: No such file'):
            read(tmp_path / 'a')
        with pytest.raises(UserError, match='is not a file'):
            read(tmp_path)
    (tmp_path / 'a').write_text('[1, 2, 3, 4]')
    monkeypatch.setattr(documents, 'MAX_BYTES', 10)
    with pytest.raises(UserError, match='has 12 bytes; at most 10 are read'):
        read_json(tmp_path / 'a')


def test_yaml_values_are_text(tmp_path):
    path = tmp_path / 'a.yaml'
    path.write_text('names: [no, on, 010, 1.50, 2020-01-01, null, "a: b"]\nnc: 7\ntrain:\n', encoding='utf-8-sig')
    content = read_yaml(path)
    assert content == dict(names=['no', 'on', '010', '1.50', '2020-01-01', 'null', 'a: b'], nc='7', train='')
    path.write_text('names: [café]', encoding='utf-16')
    assert read_yaml(path) == dict(names=['café'])


BOMB = 'a: &a [x, x]\n' + ''.join(
    f'{b}: &{b} [*{a}, *{a}, *{a}]\n' for a, b in zip('abcdefgh', 'bcdefghi', strict=True)
)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (BOMB, 'an alias in line 2 is not allowed'),
        ('a: &a [*a]', 'an alias in line 1'),
        ('names: !!python/object/apply:os.system ["touch owned"]', 'the tag .*os.system in line 1 is not allowed'),
        ('names: !!binary aGk=', 'the tag'),
        ('train: a\ntrain: b', "the key 'train' occurs twice"),
        ('a: [1, 2', 'cannot be read as YAML'),
        ('a:\n\t- b', 'cannot be read as YAML'),
        ('--- a\n--- b', 'cannot be read as YAML'),
        (b'a: \xff\xfe\x00', r'^ is not UTF-8 text .*: save it as UTF-8'),
        (b'a: \x00', 'cannot be read as YAML'),
        ('[' * 5000, 'nested more than 20 deep'),
        ('a' * (4 * 2**20 + 1), 'at most 4,194,304 are read'),
    ],
)
def test_invalid_yaml(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    assert re.search(message, error_of(read_yaml, tmp_path / 'a.yaml', content))
    assert not (tmp_path / 'owned').exists()


ENTITIES = ''.join(f'<!ENTITY {b} "&{a};&{a};&{a};&{a};">' for a, b in zip('abcdefgh', 'bcdefghi', strict=True))


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('', 'is empty'),
        (f'<!DOCTYPE r [<!ENTITY a "aaaa">{ENTITIES}]><r>&i;</r>', 'defines or refers to entities'),
        ('<!DOCTYPE r [<!ENTITY a SYSTEM "file:///etc/passwd">]><r>&a;</r>', 'defines or refers to entities'),
        (f'<!DOCTYPE r [<!ENTITY a "aaaa">{ENTITIES}]><r>&i;</r>'.encode('utf-16'), 'defines or refers to entities'),
        ('<annotation><object></annotation>', 'is not XML: mismatched tag: line 1'),
        ('<annotation><obj', 'is not XML'),
        ('<?xml version="1.0" encoding="klingon"?><r/>', 'is not XML'),
        ('<?xml version="1.0" encoding="hex"?><r/>', 'is not XML'),
        ('<?xml version="1.0" encoding="gbk"?><!DOCTYPE r [<!ENTITY a "b">]><r>&a;</r>', 'refers to entities'),
        ('<r>\u00e4</r>'.encode('cp1252'), 'save it as UTF-8'),
        (b'<r>\xff</r>', 'is not XML'),
    ],
)
def test_invalid_xml(tmp_path, content, message):
    assert message in error_of(read_xml, tmp_path / 'a.xml', content)


@pytest.mark.parametrize('encoding', ['gb2312', 'GBK', 'big5', 'Shift_JIS', 'euc-kr', 'EUC-JP'])
def test_xml_in_encodings_of_several_bytes(tmp_path, encoding):
    path = tmp_path / 'a.xml'
    path.write_bytes(f'<?xml version="1.0" encoding="{encoding}"?><a><name>水</name></a>'.encode(encoding))
    assert read_xml(path).findtext('name') == '水'


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'iso-8859-1', 'windows-1252'])
def test_xml_in_each_encoding(tmp_path, encoding):
    path = tmp_path / 'a.xml'
    declared = encoding.removesuffix('-sig')
    path.write_bytes(f'<?xml version="1.0" encoding="{declared}"?><a><name>Bär</name></a>'.encode(encoding))
    assert read_xml(path).findtext('name') == 'Bär'
    path.write_text('<!DOCTYPE a><a/>')  # a document type alone is no danger
    assert read_xml(path).tag == 'a'


def test_text(tmp_path):
    path = tmp_path / 'a.txt'
    for encoding in ('utf-8', 'utf-8-sig', 'utf-16'):
        path.write_bytes('Bär\n細胞'.encode(encoding))
        assert read_text(path) == 'Bär\n細胞'
    assert 'is not UTF-8 text' in error_of(read_text, path, 'Bär'.encode('latin-1'))
    assert 'zero byte' in error_of(read_text, path, b'a\0b')
