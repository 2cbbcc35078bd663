"""Every image is decoded once, and again only if it has changed."""

import os
import time
from pathlib import Path

import cv2
import imagehash
import numpy as np
import pytest
from PIL import Image

from mnv4_mm.data import decode as module
from mnv4_mm.data import decode_once
from mnv4_mm.data.cache import cache_folder, folder_state
from mnv4_mm.data.decode import Decoded, decode_images
from mnv4_mm.data.decode_once import MISSING
from mnv4_mm.errors import UserError

MINI = Path(__file__).parents[2] / 'data/mini/coco'


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / 'mine'
    folder.mkdir()
    for i in range(3):
        coarse = np.random.default_rng(i).integers(0, 200, (6, 8, 3), np.uint8)
        cv2.imwrite(str(folder / f'{i}.png'), cv2.resize(coarse, (80, 60)))
    return folder


@pytest.fixture
def count(monkeypatch):
    decoded = []
    real = module.decode
    monkeypatch.setattr(module, 'decode', lambda path: decoded.append(os.path.basename(path)) or real(path))
    return decoded


def test_results(root):
    (root / 'cut.jpg').write_bytes(cv2.imencode('.jpg', np.zeros((60, 80, 3), np.uint8))[1].tobytes()[:300])
    (root / 'folder.png').mkdir()
    results = decode_images(root, ['0.png', 'cut.jpg', 'folder.png', 'gone.png', 'a\0b.png'])
    assert results['0.png'][:3] == (80, 60, '')
    assert results['0.png'].brightest == pytest.approx(cv2.imread(str(root / '0.png')).max(), abs=20)
    assert results['cut.jpg'].problem.startswith('it is not a readable image')
    assert results['folder.png'].problem == 'it is not a file'
    assert results['gone.png'] == Decoded(0, 0, MISSING)
    assert results['a\0b.png'].problem


def test_a_pipe_is_not_waited_for(root):
    os.mkfifo(root / 'pipe.png')
    assert decode_images(root, ['pipe.png'])['pipe.png'].problem == 'it is not a file'


def test_images_are_decoded_again_only_if_they_have_changed(root, count):
    names = [f'{i}.png' for i in range(3)]
    first = decode_images(root, names)
    assert sorted(count) == names
    assert decode_images(root, names) == first
    assert len(count) == 3
    cv2.imwrite(str(root / '1.png'), np.full((10, 20, 3), 9, np.uint8))
    assert decode_images(root, names)['1.png'][:4] == (20, 10, '', 9)
    assert count[3:] == ['1.png']
    (cache_folder(root) / 'images.json').write_text('{"version": ')
    assert decode_images(root, names)['1.png'][:2] == (20, 10)
    assert len(count) == 7


def test_an_edit_with_the_same_size_and_modification_time_is_noticed(root, count):
    path = root / '0.bmp'
    for value in (9, 200):
        cv2.imwrite(str(path), np.full((10, 20, 3), value, np.uint8))
        os.utime(path, ns=(1, 1))
        time.sleep(0.02)
        assert decode_images(root, ['0.bmp'])['0.bmp'].brightest == value


def test_an_interrupted_check_continues(root, monkeypatch, count):
    real = module.decode

    def stop(path):
        if path.endswith('2.png'):
            raise KeyboardInterrupt
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(module, 'decode', stop)
        patch.setattr(decode_once, 'cores', lambda: 1)
        patch.setattr(decode_once, 'BLOCK', 1)
        with pytest.raises(KeyboardInterrupt):
            decode_images(root, ['0.png', '1.png', '2.png'])
    count.clear()
    decode_images(root, ['0.png', '1.png', '2.png'])
    assert count == ['2.png']


def test_the_hash_is_that_of_imagehash():
    for path in sorted(MINI.rglob('*.jpg')):
        sample = cv2.resize(cv2.imread(str(path)), (128, 128), interpolation=cv2.INTER_NEAREST)
        small = cv2.resize(cv2.cvtColor(sample, cv2.COLOR_BGR2GRAY), (32, 32), interpolation=cv2.INTER_AREA)
        expected = np.packbits(imagehash.phash(Image.fromarray(small)).hash).tobytes()
        assert module.decode(str(path)).hash == int.from_bytes(expected, 'big'), path.name


def test_the_hash_withstands_another_size_and_compression(root, tmp_path):
    pixels = cv2.imread(str(root / '0.png'))
    cv2.imwrite(str(root / 'smaller.jpg'), cv2.resize(pixels, (61, 45), interpolation=cv2.INTER_AREA))
    results = decode_images(root, ['0.png', '1.png', 'smaller.jpg'])
    assert (results['0.png'].hash ^ results['smaller.jpg'].hash).bit_count() <= 4
    assert (results['0.png'].hash ^ results['1.png'].hash).bit_count() >= 14


def test_a_cache_that_cannot_be_written_is_named(root, monkeypatch, tmp_path):
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv('MNV4_CACHE', str(tmp_path / 'file'))
    with pytest.raises(UserError, match=r'cannot be written: Not a directory; .* set MNV4_CACHE to use another folder'):
        decode_images(root, ['0.png'])


def test_the_cache_is_the_users(monkeypatch, tmp_path):
    monkeypatch.delenv('MNV4_CACHE')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    assert cache_folder(tmp_path / 'a b').parent == tmp_path / 'cache/mnv4_mm/data'
    assert cache_folder(tmp_path / 'a b') != cache_folder(tmp_path / 'a_b')


def test_the_state_of_a_folder_changes_with_its_files(root):
    states = {folder_state(root)}

    def changed():
        states.add(folder_state(root))
        return len(states)

    assert changed() == 1
    (root / '.hidden').mkdir()
    (root / '.hidden/x').write_text('x')
    assert changed() == 1
    (root / 'sub').mkdir()
    (root / 'sub/x').write_text('x')
    assert changed() == 2
    (root / 'sub/x').write_text('xy')
    assert changed() == 3
    os.utime(root / 'sub/x', ns=(1, 1))
    assert changed() == 4
    time.sleep(0.02)  # the clock of a file system may tick in hundredths of a second
    (root / 'sub/x').write_text('yx')
    os.utime(root / 'sub/x', ns=(1, 1))
    assert changed() == 5
    (root / 'sub/x').rename(root / 'sub/y')
    assert changed() == 6
    (root / 'sub/loop').symlink_to(root, target_is_directory=True)
    assert changed() == 6
    (root / 'sub/nowhere').symlink_to(root / 'gone')
    assert changed() == 7
