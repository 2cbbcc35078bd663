"""`mnv4 label`: each image exactly once, equal to the predictor's own results, for each source and after kills."""

import bz2
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import cv2
import label_faults
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pycocotools import mask
from pycocotools.coco import COCO
from sockets import answering
from stub_file import CLASSES, write_detector, write_segmenter

from mnv4_mm.cli import main
from mnv4_mm.errors import UserError
from mnv4_mm.images import read_image
from mnv4_mm.label import Labeller, label
from mnv4_mm.label import workers as worker_module
from mnv4_mm.runtime import load


@pytest.fixture(scope='module')
def detector(tmp_path_factory) -> Path:
    return write_detector(tmp_path_factory.mktemp('file') / 'net.onnx')


@pytest.fixture(scope='module')
def images(tmp_path_factory, repository) -> Path:
    """A folder with twelve images in two subfolders, and four files that are no readable images."""
    folder = tmp_path_factory.mktemp('images')
    photos = sorted((repository / 'data/mini/coco/val2017').glob('*.jpg'))[:12]
    for number, photo in enumerate(photos):
        target = folder / f'{"ab"[number % 2]}' / f'{number:02d}.jpg'
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(photo.read_bytes())
    (folder / 'a/cut.jpg').write_bytes(photos[0].read_bytes()[:2000])
    (folder / 'a/empty.jpg').write_bytes(b'')
    (folder / 'b/text.png').write_text('no image')
    (folder / 'b/link.jpg').symlink_to(folder / 'gone.jpg')
    (folder / '.hidden.jpg').write_bytes(photos[0].read_bytes())
    return folder


def results(folder: Path) -> dict[str, dict]:
    """Return the rows by id, and check that no id occurs twice."""
    rows = pq.read_table(folder / 'parts').to_pylist()
    found = {row['id']: row for row in rows}
    assert len(found) == len(rows)
    return found


def quiet(*_: object) -> None:
    pass


def run(file: Path, source: Path, out: Path, **options) -> dict[str, dict]:
    done = label(str(file), str(source), out=str(out), **{'workers': 1, 'log': quiet, **options})
    found = results(out)
    assert (done.rows, done.errors) == (len(found), sum(row['error'] is not None for row in found.values()))
    assert not done.failed
    return found


def test_rows_are_the_predictors_results_and_broken_images_have_their_error(detector, images, tmp_path):
    found = run(detector, images, tmp_path / 'out', workers=2, part=3)
    files = {path.relative_to(images).as_posix(): path for path in images.glob('[ab]/*')}
    assert found.keys() == files.keys()
    predictor = load(detector, 1)
    broken = {'a/cut.jpg', 'a/empty.jpg', 'b/text.png', 'b/link.jpg'}
    for name in broken:
        row = found[name]
        with pytest.raises(UserError) as error:
            read_image(files[name])
        assert row['error'] == str(error.value)
        assert row['boxes'] is row['scores'] is row['labels'] is row['width'] is row['height'] is None
    for name in files.keys() - broken:
        row, image = found[name], read_image(files[name])
        expected = predictor(image)
        assert (row['height'], row['width'], row['error']) == (*image.shape[:2], None)
        np.testing.assert_array_equal(np.float32(row['boxes']), expected.boxes)
        np.testing.assert_array_equal(np.float32(row['scores']), expected.scores)
        assert row['labels'] == expected.labels.tolist()
    schema = pq.read_schema(tmp_path / 'out/parts/part-000000.parquet')
    assert json.loads(schema.metadata[b'mnv4_mm'])['classes'] == list(CLASSES)


def test_scores_below_the_threshold_are_left_out(detector, images, tmp_path):
    whole, some = run(detector, images, tmp_path / 'a'), run(detector, images, tmp_path / 'b', score_thr=0.6)
    scores = [score for row in some.values() for score in row['scores'] or ()]
    assert scores
    assert min(scores) >= 0.6
    for name, row in whole.items():
        if row['error'] is None:
            count = sum(score >= 0.6 for score in row['scores'])
            assert some[name]['boxes'] == row['boxes'][:count]


@pytest.mark.parametrize('kind', ['folder', '.tar'])
def test_fast_jpeg(kind, detector, images, tmp_path):
    """Rows are those of a predictor that reads reduced images. Boxes are in pixels of the whole image."""
    names = sorted(path.relative_to(images).as_posix() for path in images.glob('[ab]/[0-9]*.jpg'))
    source, ids = (images, names) if kind == 'folder' else write_source(kind, names, images, tmp_path)
    found = run(detector, source, tmp_path / 'out', fast_jpeg=True)
    exact, fast = load(detector, 1), load(detector, 1, fast_jpeg=True)
    changed = 0
    for name, id_ in zip(names, ids, strict=True):
        row, expected, whole = found[id_], fast(images / name), exact(images / name)
        assert (row['height'], row['width']) == whole.image.shape[:2]
        np.testing.assert_array_equal(np.float32(row['scores']), expected.scores)
        np.testing.assert_array_equal(np.float32(row['boxes']), expected.boxes)
        assert expected.image is None
        np.testing.assert_allclose(np.sort(expected.boxes, 0), np.sort(whole.boxes, 0), atol=1e-3)
        changed += not np.array_equal(expected.scores, whole.scores)
    assert changed
    if kind == 'folder':
        assert 'a/cut.jpg is not a readable image' in found['a/cut.jpg']['error']


def test_a_job_of_a_version_without_fast_jpeg_is_continued(detector, images, tmp_path, folder_rows):
    out = tmp_path / 'out'
    run(detector, images, out, part=4)
    plan = json.loads((out / 'label.json').read_text())
    assert plan['plan'].pop('fast_jpeg') is False
    (out / 'label.json').write_text(json.dumps(plan))
    (out / 'parts/part-000001.parquet').unlink()
    assert run(detector, images, out, part=4) == folder_rows


def write_source(kind: str, names: list[str], images: Path, folder: Path) -> tuple[Path, list[str]]:
    """Write a source of the images, and return it with the ids that they have in it."""
    paths = [images / name for name in names]
    relative = [os.path.relpath(path, folder) for path in paths]
    contents = [path.read_bytes() for path in paths]
    source = folder / f'source{kind}'
    match kind:
        case '.txt':
            source.write_text('\ufeff' + '\n'.join([*map(str, relative), '']), encoding='utf-8')
            return source, relative
        case '.csv':
            rows = '\n'.join(f'{name},"{path}",1' for name, path in zip(names, paths, strict=True))
            source.write_text(f'id,path,camera\n{rows}\n')
            return source, names
        case '-paths.parquet':
            pq.write_table(pa.table(dict(file_name=relative)), source)
            return source, relative
        case '-bytes.parquet':
            pq.write_table(pa.table(dict(bytes=contents)), source, row_group_size=5)
            return source, [f'{source.name}#{i // 5}.{i % 5}' for i in range(len(names))]
        case '-struct.parquet':  # as Hugging Face's datasets write images
            pq.write_table(pa.table(dict(id=names, image=[dict(bytes=c, path=None) for c in contents])), source)
            return source, names
        case '.tar' | '.tgz':
            with tarfile.open(source, 'w:gz' if kind == '.tgz' else 'w') as shard:
                for name, content in zip(names, contents, strict=True):
                    for suffix, data in (('', content), ('.json', b'{}')):
                        member = tarfile.TarInfo(name + suffix)
                        member.size = len(data)
                        shard.addfile(member, io.BytesIO(data))
            return source, [f'{source.name}/{name}' for name in names]
    raise AssertionError(kind)


@pytest.mark.parametrize(
    'kind', ['.txt', '.csv', '-paths.parquet', '-bytes.parquet', '-struct.parquet', '.tar', '.tgz']
)
def test_every_kind_of_source_gives_the_same_rows(kind, detector, images, tmp_path, folder_rows):
    names = sorted(folder_rows)
    names.remove('b/link.jpg')  # which has no content to store
    source, ids = write_source(kind, names, images, tmp_path)
    found = run(detector, source, tmp_path / 'out', part=4)
    assert found.keys() == set(ids)
    for name, id_ in zip(names, ids, strict=True):
        expected, row = folder_rows[name], found[id_]
        assert (row['error'] is None) == (expected['error'] is None)
        assert {**row, 'id': name, 'error': None} == {**expected, 'error': None}


@pytest.fixture(scope='module')
def folder_rows(detector, images, tmp_path_factory):
    return run(detector, images, tmp_path_factory.mktemp('folder') / 'out')


def test_frames_of_a_video(detector, images, tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / 'clip.avi'), cv2.VideoWriter.fourcc(*'MJPG'), 10, (64, 48))
    for value in range(5):
        writer.write(np.full((48, 64, 3), 40 * value, np.uint8))
    writer.release()
    (tmp_path / 'films').mkdir()
    content = (tmp_path / 'clip.avi').read_bytes()
    (tmp_path / 'films/whole.avi').write_bytes(content)
    (tmp_path / 'films/none.mp4').write_bytes(b'no video')
    found = run(detector, tmp_path / 'films', tmp_path / 'out')
    assert found.keys() == {*(f'whole.avi#{number}' for number in range(5)), 'none.mp4'}
    assert found['none.mp4']['error'].endswith('none.mp4 is not a readable video')
    video, predictor = cv2.VideoCapture(str(tmp_path / 'clip.avi')), load(detector, 1)
    for number in range(5):
        np.testing.assert_array_equal(
            np.float32(found[f'whole.avi#{number}']['scores']), predictor(video.read()[1]).scores
        )


@pytest.mark.parametrize('fault', ['cut in a member', 'cut in a header', 'cut between members', 'damaged header'])
def test_a_broken_shard_keeps_its_first_images_and_has_a_row_with_the_error(
    fault, detector, images, tmp_path, folder_rows
):
    names = [name for name, row in folder_rows.items() if row['error'] is None]
    source, ids = write_source('.tar', names, images, tmp_path)
    with tarfile.open(source) as shard:
        middle = shard.getmembers()[len(names)]
    content = bytearray(source.read_bytes())
    if fault == 'damaged header':
        content[middle.offset + 10] ^= 255
    else:
        ends = {'cut in a member': middle.offset_data + 100, 'cut in a header': middle.offset + 100}
        del content[ends.get(fault, middle.offset) :]
    source.write_bytes(content)
    found = run(detector, source, tmp_path / 'out')
    error = found.pop('source.tar')['error']
    assert 'is damaged' in error
    assert 0 < len(found) < len(ids)
    assert all(row['error'] is None for row in found.values())


@pytest.mark.parametrize('kind', ['.tar', '.tgz'])
def test_concatenated_shards_are_read_to_their_end(kind, detector, images, tmp_path):
    content = b''
    for part in 'ab':
        (tmp_path / part).mkdir()
        names = [f'{part}/{number:02d}.jpg' for number in range(part == 'b', 6, 2)]
        content += write_source(kind, names, images, tmp_path / part)[0].read_bytes()
    source = tmp_path / f'both{kind}'
    source.write_bytes(content)
    found = run(detector, source, tmp_path / 'out')
    assert len(found) == 6
    assert all(row['error'] is None for row in found.values())
    source.write_bytes(content + b'something else')
    found = run(detector, source, tmp_path / 'with garbage')
    assert found.pop(f'both{kind}')['error'] is not None
    assert len(found) == 6
    if kind == '.tar':  # Python's bz2 and lzma ignore what follows, so they are not read
        source.write_bytes(bz2.compress(content))
        (row,) = run(detector, source, tmp_path / 'bz2').values()
        assert 'compressed, but not by gzip' in row['error']


def test_repeated_and_linked_members_of_a_shard_have_rows_with_the_error(detector, images, tmp_path):
    content = (images / 'a/00.jpg').read_bytes()
    with tarfile.open(tmp_path / 'x.tar', 'w') as shard:
        for name in ('a.jpg', 'a.jpg'):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            shard.addfile(member, io.BytesIO(content))
        member = tarfile.TarInfo('link.jpg')
        member.type, member.linkname = tarfile.LNKTYPE, 'a.jpg'
        shard.addfile(member)
    found = run(detector, tmp_path / 'x.tar', tmp_path / 'out')
    assert found['x.tar/a.jpg']['error'] is None
    assert 'occurs twice' in found['x.tar/a.jpg#2']['error']
    assert 'is a link' in found['x.tar/link.jpg']['error']
    assert len(found) == 3


def test_names_that_are_not_utf8(detector, images, tmp_path):
    folder, content = tmp_path / 'images', (images / 'a/00.jpg').read_bytes()
    folder.mkdir()
    (folder / os.fsdecode(b'caf\xe9.jpg')).write_bytes(content)
    with tarfile.open(folder / 'x.tar', 'w', format=tarfile.USTAR_FORMAT, encoding='latin-1') as shard:
        member = tarfile.TarInfo('\xe9.jpg')
        member.size = len(content)
        shard.addfile(member, io.BytesIO(content))
    (folder / os.fsdecode(b'\xe8.jpg')).write_text('no image')
    found = run(detector, folder, tmp_path / 'out', coco=str(tmp_path / 'coco.json'))
    assert found.keys() == {'caf\\udce9.jpg', 'x.tar/\\udce9.jpg', '\\udce8.jpg'}
    assert {name for name, row in found.items() if row['error']} == {'\\udce8.jpg'}


def test_a_folder_may_hold_shards_and_parquet_files_beside_images(detector, images, tmp_path, folder_rows):
    names = [name for name, row in folder_rows.items() if row['error'] is None]
    folder = tmp_path / 'all'
    folder.mkdir()
    for kind in ('.tar', '-bytes.parquet', '-paths.parquet'):  # the last one has no images, and is skipped
        write_source(kind, names, images, folder)
    (folder / 'a.jpg').write_bytes((images / names[0]).read_bytes())
    (folder / 'pipe.mp4').unlink(missing_ok=True)
    os.mkfifo(folder / 'pipe.mp4')  # reading from it would never end
    found = run(detector, folder, tmp_path / 'out', part=4)
    assert len(found) == 2 * len(names) + 2
    assert [name for name, row in found.items() if row['error']] == ['pipe.mp4']


# pycocotools 2.0.11 and numpy 2
@pytest.mark.filterwarnings('ignore:__array__ implementation doesn.t accept a copy keyword:DeprecationWarning')
def test_class_maps_as_run_lengths(images, tmp_path):
    file = write_segmenter(tmp_path / 'net.onnx')
    found = run(file, images, tmp_path / 'out', coco=str(tmp_path / 'coco.json'))
    predictor = load(file, 1)
    annotations = COCO(str(tmp_path / 'coco.json'))
    by_name = {image['file_name']: image['id'] for image in annotations.dataset['images']}
    assert len(by_name) == 12
    for name, id_ in by_name.items():
        expected = predictor(images / name).class_map
        decoded = np.full(expected.shape, 255, np.uint8)
        for segment in found[name]['segments']:
            size = [found[name]['height'], found[name]['width']]
            decoded[mask.decode(dict(size=size, counts=segment['counts'])) == 1] = segment['label']
        np.testing.assert_array_equal(decoded, expected)
        for annotation in annotations.loadAnns(annotations.getAnnIds(id_)):
            np.testing.assert_array_equal(
                annotations.annToMask(annotation) == 1, expected == annotation['category_id'] - 1
            )


def test_coco_json_replaces_nothing_but_an_earlier_one(detector, images, tmp_path):
    out, own = tmp_path / 'out', tmp_path / 'own.json'
    own.write_text('{"images": [], "annotations": [], "categories": []}')
    meta = detector.with_name(f'{detector.name}.json')
    kept = meta.read_bytes()
    loop = tmp_path / 'loop.json'
    loop.symlink_to(loop)
    for path in (out / 'label.json', out / 'parts/c.json', meta, own, loop, tmp_path / f'{"x" * 300}.json'):
        with pytest.raises(UserError, match='--coco'):
            run(detector, images, out, coco=str(path))
    assert not out.exists()
    assert meta.read_bytes() == kept
    for _ in range(2):
        run(detector, images, out, coco=str(tmp_path / 'coco.json'))
    assert json.loads((tmp_path / 'coco.json').read_text())['info'] == {'description': 'mnv4 label'}


def test_coco_json_has_the_rows(detector, images, tmp_path):
    found = run(detector, images, tmp_path / 'out', part=3, coco=str(tmp_path / 'coco.json'))
    coco = COCO(str(tmp_path / 'coco.json'))
    assert {category['name']: category['id'] for category in coco.dataset['categories']} == dict(cat=3, dog=7, cow=9)
    assert {item['file_name'] for item in coco.dataset['unreadable']} == {n for n, r in found.items() if r['error']}
    for image in coco.dataset['images']:
        row = found[image['file_name']]
        assert (image['width'], image['height']) == (row['width'], row['height'])
        annotations = coco.loadAnns(coco.getAnnIds(image['id']))
        assert [a['score'] for a in annotations] == row['scores']
        assert [a['category_id'] for a in annotations] == [(3, 7, 9)[label] for label in row['labels']]
        corners = [[x, y, x + w, y + h] for x, y, w, h in (a['bbox'] for a in annotations)]
        np.testing.assert_allclose(corners, row['boxes'], rtol=1e-6)


def test_batches_give_the_results_of_single_images(images, tmp_path):
    file = write_detector(tmp_path / 'net.onnx', 'raw', size=None)
    paths = sorted(images.glob('a/*.jpg'))
    table = pa.table(dict(path=[str(path) for path in paths]))
    one, many = Labeller(file, batch=1)(table), Labeller(file, batch=4)(table)
    assert one.column('error') == many.column('error')
    for name in ('boxes', 'scores'):
        for a, b in zip(one.column(name).to_pylist(), many.column(name).to_pylist(), strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                np.testing.assert_allclose(a, b, rtol=1e-5)


def test_tables_of_other_engines(detector, images):
    labeller = Labeller(detector)
    with pytest.raises(UserError, match='column path'):
        labeller(pa.table(dict(url=['x'])))
    content = (images / 'a/00.jpg').read_bytes()
    for values in (pa.array([content]), pa.array([content]).dictionary_encode()):
        (row,) = labeller(pa.table(dict(id=['a'], bytes=values))).to_pylist()
        assert row['error'] is None
    for table, message in (
        (dict(path=[1]), 'path of a table of images must hold str, got int'),
        (dict(id=['a'], bytes=[dict(bytes=b'x', path='a')]), 'bytes of a table of images must hold bytes, got dict'),
    ):
        with pytest.raises(UserError, match=message):
            labeller(pa.table(table))
    empty = labeller(pa.table(dict(path=pa.array([], pa.string()))))
    assert empty.schema == labeller.schema
    assert len(empty) == 0
    path = str(images / 'a/00.jpg')
    rows = labeller(pa.table(dict(path=[path, None]))).to_pylist()
    assert [row['error'] for row in rows] == [None, 'there is no image']
    content = labeller(pa.table(dict(bytes=[Path(path).read_bytes()], id=[7]))).to_pylist()
    assert content == [{**rows[0], 'id': '7'}]


def test_a_run_that_was_stopped_before_it_had_a_plan(detector, images, tmp_path, folder_rows):
    out = tmp_path / 'out'
    out.mkdir()
    (out / 'entries.parquet').write_bytes(b'incomplete')
    (out / '.lock').touch()
    assert run(detector, images, out) == folder_rows
    for path in (out / 'parts').iterdir():
        path.unlink()
    (out / 'parts').rmdir()
    assert run(detector, images, out) == folder_rows


def test_a_part_that_raises_does_not_stop_the_others_and_is_tried_again(detector, images, tmp_path, monkeypatch):
    monkeypatch.setattr(worker_module, '_serve', label_faults.raise_at_part_one)
    done = label(str(detector), str(images), out=str(tmp_path / 'out'), workers=1, part=4, log=quiet)
    assert done.rows == 12
    assert len(done.failed) == 1
    assert 'MemoryError: planted' in done.failed[0]
    monkeypatch.undo()
    assert len(run(detector, images, tmp_path / 'out', part=4)) == 16


def test_processes_that_crash_while_they_load_are_not_started_for_ever(detector, images, tmp_path, monkeypatch):
    monkeypatch.setattr(worker_module, '_serve', label_faults.die_at_once)
    with pytest.raises(UserError, match='crash while they load'):
        label(str(detector), str(images), out=str(tmp_path / 'out'), workers=2, part=1, log=quiet)


def test_images_with_errors_are_labelled_again_on_request(detector, images, tmp_path):
    folder = tmp_path / 'images'
    folder.mkdir()
    (folder / 'a.jpg').write_bytes((images / 'a/00.jpg').read_bytes())
    (folder / 'b.jpg').write_text('not yet there')
    found = run(detector, folder, tmp_path / 'out', part=1)
    assert found['b.jpg']['error']
    (folder / 'b.jpg').write_bytes((images / 'b/01.jpg').read_bytes())
    assert run(detector, folder, tmp_path / 'out', part=1) == found
    again = run(detector, folder, tmp_path / 'out', part=1, retry=True)
    assert again['a.jpg'] == found['a.jpg']
    assert again['b.jpg']['error'] is None


def test_a_run_without_a_readable_image_does_not_succeed(detector, tmp_path, capsys):
    (tmp_path / 'list.txt').write_text('gone.jpg\n')
    command = ['label', str(detector), str(tmp_path / 'list.txt'), '--out', str(tmp_path / 'out')]
    assert main(command) == 1
    assert '1 images, 1 of them unreadable' in capsys.readouterr().out


def test_an_interrupted_run_is_continued(detector, images, tmp_path, folder_rows, monkeypatch):
    real = worker_module.make_parts

    def two(*arguments):
        for number, outcome in enumerate(real(*arguments)):
            yield outcome
            if number == 1:
                raise KeyboardInterrupt

    monkeypatch.setattr(worker_module, 'make_parts', two)
    out = tmp_path / 'out'
    with pytest.raises(KeyboardInterrupt):
        label(str(detector), str(images), out=str(out), workers=1, part=3, log=quiet)
    monkeypatch.undo()
    first = {path.name: path.stat().st_mtime_ns for path in (out / 'parts').glob('part-*')}
    assert len(first) >= 2
    # Also after a power cut that left a part incomplete.
    damaged = out / 'parts' / min(first)
    damaged.write_bytes(damaged.read_bytes()[:100])
    (out / 'parts/.0.attempts').touch()
    (out / 'parts/.x.1.part').touch()
    lines = []
    assert run(detector, images, out, part=3, log=lines.append) == folder_rows
    assert lines[0].startswith(f'{len(first) - 1} of 6 parts are done')
    kept = {path.name: path.stat().st_mtime_ns for path in (out / 'parts').glob('part-*')}
    assert {name for name, time_ in first.items() if kept[name] == time_} == first.keys() - {damaged.name}
    assert run(detector, images, out, part=3) == folder_rows
    assert kept == {path.name: path.stat().st_mtime_ns for path in (out / 'parts').glob('part-*')}


def test_killed_processes_lose_and_repeat_nothing(detector, images, tmp_path, folder_rows, repository):
    """The command and its workers are killed in turn, until a run ends."""
    command = [
        sys.executable, '-m', 'mnv4_mm', 'label', detector, images, '--out', tmp_path / 'out', '--workers', '2',
        '--part', '1',
    ]  # fmt: skip
    for kill in ('driver', 'worker', None):
        process = subprocess.Popen(
            list(map(str, command)), cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        if kill:
            deadline = time.monotonic() + 60
            before = len(list((tmp_path / 'out/parts').glob('part-*')))
            while process.poll() is None and time.monotonic() < deadline:
                if len(list((tmp_path / 'out/parts').glob('part-*'))) > before:
                    break
                time.sleep(0.005)
            victims = [process.pid] if kill == 'driver' else children(process.pid)[-1:]
            for victim in victims:
                os.kill(victim, signal.SIGKILL)
        output, errors = process.communicate(timeout=120)
        if kill != 'driver':
            assert process.returncode == 0, errors
            assert f'{len(folder_rows)} images, 4 of them unreadable' in output
    assert results(tmp_path / 'out') == folder_rows
    assert not list((tmp_path / 'out/parts').glob('.*'))


def children(process: int) -> list[int]:
    return [int(number) for number in Path(f'/proc/{process}/task/{process}/children').read_text().split()]


def test_a_part_that_always_kills_its_process_does_not_stop_the_others(detector, images, tmp_path, monkeypatch):
    monkeypatch.setattr(worker_module, '_serve', label_faults.die_at_part_one)
    done = label(str(detector), str(images), out=str(tmp_path / 'out'), workers=2, part=4, log=quiet)
    assert len(done.failed) == 1
    assert done.failed[0].startswith('part 1 (a/08.jpg to a/empty.jpg): its process crashed')
    assert done.rows == len(results(tmp_path / 'out')) == 12
    monkeypatch.undo()
    assert len(run(detector, images, tmp_path / 'out', part=4)) == 16


def test_a_folder_belongs_to_one_job(detector, images, tmp_path):
    out = tmp_path / 'out'
    run(detector, images, out)

    def refused(match: str, source: Path = images, file: Path = detector, **options) -> None:
        with pytest.raises(UserError, match=match):
            label(str(file), str(source), out=str(out), workers=1, log=quiet, **options)

    refused('started with --part 256, not 7', part=7)
    refused('started with --score-thr None, not 0.5', score_thr=0.5)
    refused('started without --fast-jpeg, not with it', fast_jpeg=True)
    other = write_detector(tmp_path / 'other.onnx', 'raw')
    refused('started with the file .*net.onnx, not', file=other)
    (tmp_path / 'list.txt').write_text(str(images / 'a/00.jpg'))
    refused('1 added, 16 removed', source=tmp_path / 'list.txt')
    shard, _ = write_source('.tar', ['a/00.jpg'], images, tmp_path)
    label(str(detector), str(shard), out=str(tmp_path / 'shard'), workers=1, log=quiet)
    shard, _ = write_source('.tar', ['a/02.jpg'], images, tmp_path)
    with pytest.raises(UserError, match='a file has been replaced'):
        label(str(detector), str(shard), out=str(tmp_path / 'shard'), workers=1, log=quiet)
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine/notes.txt').write_text('')
    with pytest.raises(UserError, match='is not empty'):
        label(str(detector), str(images), out=str(tmp_path / 'mine'), log=quiet)
    assert [path.name for path in (tmp_path / 'mine').iterdir()] == ['notes.txt']


@pytest.mark.parametrize(
    ('name', 'content', 'match'),
    [
        ('list.txt', 'a.jpg\nb.jpg\na.jpg\n', "names 'a.jpg' twice"),
        ('list.txt', '\n', 'is empty'),
        ('list.csv', 'url\nhttp://x\n', 'no column path, .* it has url'),
        ('list.csv', 'id,path\n1,a.jpg\n2\n', 'line 3: 1 values'),
        ('list.csv', 'id,path\n1,\n', 'line 2: no path'),
        ('list.parquet', 'no parquet', 'not a readable Parquet file'),
        ('list.xlsx', 'x', 'images come from a folder'),
    ],
)
def test_sources_that_cannot_be_read(name, content, match, detector, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=match):
        label(str(detector), str(tmp_path / name), out=str(tmp_path / 'out'), log=quiet)
    assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('ids', [['a', 'a'], ['a', None], ['a', '']])
def test_ids_of_a_parquet_file_must_be_distinct(ids, detector, images, tmp_path):
    content = (images / 'a/00.jpg').read_bytes()
    pq.write_table(pa.table(dict(id=ids, bytes=[content] * 2)), tmp_path / 'x.parquet', row_group_size=1)
    with pytest.raises(UserError, match='is missing or occurs twice'):
        label(str(detector), str(tmp_path / 'x.parquet'), out=str(tmp_path / 'out'), log=quiet)


@pytest.mark.parametrize('name', ['y.parquet', 'a.jpg'])
def test_ids_of_a_parquet_file_must_not_be_those_of_another_file(name, detector, images, tmp_path):
    content = (images / 'a/00.jpg').read_bytes()
    (tmp_path / 'in').mkdir()
    for path in (tmp_path / 'in/x.parquet', tmp_path / 'in' / name):
        if path.suffix == '.jpg':
            path.write_bytes(content)
        else:
            pq.write_table(pa.table(dict(id=['a.jpg'], bytes=[content])), path)
    with pytest.raises(UserError, match='twice'):
        label(str(detector), str(tmp_path / 'in'), out=str(tmp_path / 'out'), log=quiet)


def test_a_ray_cluster_that_cannot_be_reached_is_reported_at_once(detector, images, tmp_path):
    pytest.importorskip('ray', reason='Ray is not installed: pip install "mnv4_mm[ray]"')
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))  # nobody listens
        address = f'127.0.0.1:{server.getsockname()[1]}'
        with pytest.raises(UserError, match='cannot be reached'):
            label(str(detector), str(images), out=str(tmp_path / 'out'), ray=address, log=quiet)


@pytest.mark.parametrize('answer', [None, b'', b'HTTP/1.1 400 Bad Request\r\n\r\n'])
def test_a_port_of_something_else_than_ray_is_reported_at_once(answer, detector, images, tmp_path):
    """Such as a server that says nothing, hangs up, or is Ray's dashboard. Ray itself waits for minutes."""
    pytest.importorskip('ray', reason='Ray is not installed: pip install "mnv4_mm[ray]"')
    with answering(answer) as address, pytest.raises(UserError, match='no Ray cluster answers'):
        label(str(detector), str(images), out=str(tmp_path / 'out'), ray=address, log=quiet)


def test_a_full_disk_is_one_line(detector, images, tmp_path, monkeypatch):
    out = tmp_path / 'out'
    monkeypatch.setattr(worker_module, '_serve', label_faults.fail_to_write)
    with pytest.raises(UserError, match='cannot be written: No space left on device'):
        label(str(detector), str(images), out=str(out), workers=1, log=quiet)
