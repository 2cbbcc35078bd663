"""A latency table that is measured in ONNX Runtime, and one of the lines of a browser; the search with it."""

import dataclasses
import json
from pathlib import Path

import pytest
from filelock import FileLock
from stub_checkpoint import write_stub_checkpoint
from stub_file import write_detector

from mnv4_mm.cli import main
from mnv4_mm.models.complexity import count
from mnv4_mm.models.supernet import build_backbone
from mnv4_mm.runtime.meta import read_meta, sha256, sidecar
from mnv4_mm.search import browser, profile, run
from mnv4_mm.search.blocks import blocks_of, net_macs
from mnv4_mm.search.front import read_front
from mnv4_mm.search.latency import FILES_MARKER, Predictor, check_files_folder, read_table, write_table
from mnv4_mm.search.profile import Supernet, _Records, choose_nets

DETECTOR, SEGMENTER = 'mnv4_ssdlite_coco-mini', 'mnv4_lraspp_ade20k-mini'


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(profile, 'ROUNDS', 2)
    monkeypatch.setattr(profile, 'SECONDS', 0.001)


@pytest.fixture(scope='module')
def table(supernet, once):
    """A table of the detector with 3 blocks and 3 nets, and one net that it is checked on."""

    def make(folder):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(profile, 'ROUNDS', 2)
            patch.setattr(profile, 'SECONDS', 0.001)
            arguments = ['--runtime', 'onnx', '--nets', '3', '--blocks', '3', '--check', '1']
            out = str(folder / 'table.json')
            assert main(['search', 'profile', str(supernet(DETECTOR)), *arguments, '--out', out]) == 0

    return once('latency table', make) / 'table.json'


def test_a_profile_measures_blocks_and_nets(table, supernet):
    found = read_table(table)
    assert [sum(one.measured for one in found.blocks), len(found.nets), len(found.checked)] == [3, 3, 1]
    assert found.subject.sizes == ((64, 64), (96, 96), (128, 128))
    assert (found.runtime, found.threads) == ('onnx', 1)
    assert found.machine['versions'].keys() >= {'mnv4_mm', 'onnxruntime'}
    smallest, largest = (net.ms for net in found.nets[:2])
    assert 0 < smallest < largest
    files = {path.name for path in table.parent.iterdir() if path.suffix != '.lock'}
    assert files == {'table.json', 'table.jsonl'}
    predict = Predictor(found, found.subject, Supernet(supernet(DETECTOR)).backbone)
    assert predict(found.nets[0].genes) == pytest.approx(found.nets[0].predicted)


def test_a_profile_continues_where_it_was_stopped(table, supernet, quick, tmp_path, monkeypatch, capsys):
    out = tmp_path / 'again.json'
    arguments = ['--nets', '3', '--blocks', '3', '--check', '1', '--out', str(out)]
    command = ['search', 'profile', str(supernet(DETECTOR)), *arguments]
    lines = table.with_suffix('.jsonl').read_text().splitlines(keepends=True)
    assert len(lines) == 1 + 2 * 7
    # Killed in the last round, in the middle of a line; the files were kept, of which this test has none.
    written = ''.join(lines[:-1])
    out.with_suffix('.jsonl').write_text(written + lines[-1][:20])
    exported = []
    real = profile._export
    monkeypatch.setattr(profile, '_export', lambda graph, path: (exported.append(path), real(graph, path)))
    assert main(command) == 0
    assert len(exported) == 1
    again = out.with_suffix('.jsonl').read_text()
    assert again.startswith(written)
    added = again.removeprefix(written).strip().splitlines()
    assert [json.loads(line)['item'] for line in added] == [json.loads(lines[-1])['item']]
    first, second = read_table(table), read_table(out)
    assert [net.ms for net in second.nets].count(0) == 0
    assert sum(a.ms == b.ms for a, b in zip(first.nets, second.nets, strict=True)) >= 2
    # Once more, and nothing is measured.
    monkeypatch.setattr(profile, 'session', None)
    assert main(command) == 0
    assert out.with_suffix('.jsonl').read_text() == again
    assert len(exported) == 1
    with FileLock(tmp_path / '.again.json.lock'):
        assert main(command) == 2
    assert f'another process writes {out}' in capsys.readouterr().err
    # Measurements of something else are not mixed with these.
    capsys.readouterr()
    assert main([*command, '--threads', '2']) == 2
    assert 'has measurements with other values of threads' in capsys.readouterr().err


def test_files_are_kept_until_the_table_is_written(supernet, quick, tmp_path, monkeypatch):
    exported, real = [], profile._export

    def killed(*_):
        raise KeyboardInterrupt

    arguments = supernet(DETECTOR), profile.Plan('onnx', nets=3, blocks=2), tmp_path / 'table.json'
    monkeypatch.setattr(profile, '_export', lambda graph, path: (exported.append(path.name), real(graph, path)))
    for name in ('time_inferences', 'write_table'):
        with monkeypatch.context() as patch:
            patch.setattr(profile, name, killed)
            with pytest.raises(KeyboardInterrupt):
                profile.profile(*arguments, log=lambda line: None)
        assert len(list((tmp_path / 'table.files').glob('*.onnx'))) == 5
    table = profile.profile(*arguments, log=lambda line: None)
    assert len(exported) == len(set(exported)) == 5
    assert len(table.nets) == 3
    assert not (tmp_path / 'table.files').exists()


def test_a_folder_of_the_user_is_not_deleted(tmp_path, capsys):
    checkpoint, mine = write_stub_checkpoint(tmp_path / 'net.pth'), tmp_path / 'table.files/mine.txt'
    mine.parent.mkdir()
    mine.touch()
    assert main(['search', 'profile', str(checkpoint), '--out', str(tmp_path / 'table.json')]) == 2
    assert f'{mine.parent} would be deleted, and was not made by `mnv4 search profile`' in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == [checkpoint, mine.parent]
    (mine.parent / FILES_MARKER).touch()
    assert check_files_folder(tmp_path / 'table.json') == mine.parent


def test_a_block_that_cannot_be_exported_is_left_to_the_roofline(supernet, quick, tmp_path, monkeypatch):
    loaded = Supernet(supernet(DETECTOR))
    block = blocks_of(loaded.space.subnet(loaded.space.smallest()).arch, loaded.backbone)[0]

    def failing(graph, path):
        raise RuntimeError('no such operator')

    monkeypatch.setattr(profile, '_export', failing)
    lines: list[str] = []
    records = _Records(tmp_path / 'r.jsonl', {})
    assert profile._measure(loaded, profile.Plan('onnx'), [block], records, tmp_path / 'files', lines.append) == {}
    assert any('RuntimeError: no such operator' in line for line in lines)
    assert lines[-1] == 'warning: 1 of 1 blocks and nets could not be exported, and are not measured'


@pytest.mark.parametrize('name', [DETECTOR, pytest.param(SEGMENTER, marks=pytest.mark.long)])
def test_the_blocks_of_a_supernet_are_those_of_its_backbone(name, supernet):
    loaded = Supernet(supernet(name))
    size, backbone = loaded.subject.sizes[-1], dict(loaded.backbone)
    options = {key: value for key, value in backbone.items() if key in ('out_indices', 'output_stride')}
    for genes in choose_nets(loaded.space, 5, 0)[0]:
        macs = count(build_backbone(loaded.space, genes, **options), size).macs
        assert net_macs(loaded.space, genes, backbone, size) == macs
    if name == SEGMENTER:
        graph = loaded.graph(genes, 'onnx')
        assert graph.meta.kind == 'logits'
        assert graph.meta.input.size == loaded.subject.sizes[genes[-1]]


class InProcess:
    """A pool that scores nets by their first gene."""

    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def map(self, _, nets):
        return [sum(genes) / 1000 for genes in nets]


def test_a_search_under_a_limit_in_ms(table, supernet, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, 'ProcessPoolExecutor', InProcess)
    path, found = str(supernet(DETECTOR)), read_table(table)
    arguments = ['search', 'run', path, '--images', '2', '--nets', '20', '--engine', 'random', '--out', str(tmp_path)]
    assert main([*arguments, '--latency', str(table)]) == 0
    output = capsys.readouterr().out
    assert '| ms | bbox_mAP | input |' in output
    front = read_front(tmp_path / 'front-random-table.json')
    assert front.unit == 'ms'
    assert front.plan['latency']['runtime'] == 'onnx'
    predict = Predictor(found, found.subject, Supernet(path).backbone)
    assert [net.cost for net in front.nets] == [predict(net.genes) for net in front.nets]
    assert (tmp_path / 'front-random-table.png').read_bytes().startswith(b'\x89PNG')
    median = sorted(net.cost for net in front.nets)[len(front.nets) // 2]
    assert main([*arguments, '--latency', str(table), '--limit', f'{median:.4f}ms']) == 0
    assert max(net.cost for net in read_front(tmp_path / 'front-random-table.json').nets) <= median + 1e-4
    capsys.readouterr()
    # The records do not depend on the cost: nothing is scored again.
    monkeypatch.setattr(InProcess, 'map', lambda pool, function, nets: [pytest.fail('scored again') for _ in nets])
    assert main(arguments) == 0
    assert read_front(tmp_path / 'front-random.json').unit == 'GMACs'
    # Two engines in turn. NSGA-II begins with the baselines, which are scored already, and the same random nets.
    plotted = []
    monkeypatch.setattr(
        'mnv4_mm.search.plot.write_plot', lambda front, baseline, path: plotted.append((front, baseline))
    )
    assert main(['search', 'run', '--engine', 'nsga2', *arguments[2:]]) == 0
    assert capsys.readouterr().out.count('| GMACs | bbox_mAP | input |') == 3
    (random_front, nothing), (_, baseline) = plotted
    assert random_front.plan['engine'] == 'random'
    assert nothing is None
    assert baseline == random_front
    nsga2 = read_front(tmp_path / 'front-nsga2.json')
    assert nsga2.plan['engine'] == 'nsga2'
    assert {genes for _, (genes, *_) in nsga2.baselines} & {net.genes for net in nsga2.nets}
    assert main([*arguments, '--latency', str(table), '--limit', '0.0001']) == 2
    assert 'nets is within --limit 0.0001' in capsys.readouterr().err
    assert main([*arguments, '--engine', 'nsga2', '--latency', str(table), '--limit', '0.0001']) == 2
    output, error = capsys.readouterr()
    assert '--engine random: none of the 20 nets is within --limit 0.0001' in output
    assert 'none of the 20 nets is within --limit 0.0001' in error
    monkeypatch.setattr('mnv4_mm.cli.search.find_spec', lambda name: None)
    assert main([*arguments, '--engine', 'nsga2']) == 2
    assert '--engine nsga2 needs Optuna' in capsys.readouterr().err
    monkeypatch.undo()
    # A table of other images.
    other = tmp_path / 'other.json'
    write_table(found._replace(subject=found.subject._replace(sizes=((64, 64),))), other)
    assert main([*arguments, '--latency', str(other)]) == 2
    error = capsys.readouterr().err
    assert (
        error == 'error: --latency: the table is of images of 64x64 pixels, the supernet takes 64x64, 96x96, 128x128\n'
    )


def line_of(page, p50, **changes):
    (file, digest), *_ = read_meta(page).files.items()
    content = dict(
        format=1, file=Path(file).name, sha256=digest, device='a phone', browser='Chrome 1', backend='wasm', threads=1,
        images=10, p50=p50, p95=p50 + 1, whole=p50 + 2,
    )  # fmt: skip
    return json.dumps({**content, **changes})


def test_lines_of_a_browser(supernet, tmp_path, monkeypatch, capsys):
    """The pages are stubs here; their export is tested with ``mnv4 export``."""
    path, pages, written = str(supernet(DETECTOR)), tmp_path / 'pages', []

    def write(graph, target, path):
        assert graph.meta.kind == 'nms'
        path.mkdir()
        file = write_detector(path / f'{path.stem}.onnx')
        meta = read_meta(file)
        file.write_bytes(file.read_bytes() + bytes(len(written)))  # other bytes, another digest
        files = {f'{path.name}/{file.name}': sha256(file)}
        sidecar(path).write_text(dataclasses.replace(meta, files=files, target='web').to_json())
        written.append(path)

    monkeypatch.setattr(browser, 'write', write)
    command = ['search', 'profile', path, '--nets', '4', '--check', '1', '--browser', str(pages)]
    assert main(command) == 0
    assert len(written) == 5
    assert main(command) == 0
    assert len(written) == 5
    assert '5 pages' in capsys.readouterr().out
    lines, out = tmp_path / 'lines.jsonl', tmp_path / 'web.json'
    lines.write_text('\n'.join(line_of(page, 10 + number) for number, page in enumerate(written)))
    measured = [*command, '--measured', str(lines), '--out', str(out)]
    assert main(measured) == 0
    table = read_table(out)
    assert (table.runtime, table.threads, table.machine['device']) == ('web', 1, 'a phone')
    assert [net.ms for net in (*table.nets, *table.checked)] == [10, 11, 12, 13, 14]
    assert not any(one.measured for one in table.blocks)
    assert '0 of 453 blocks and 4 nets measured' in capsys.readouterr().out
    wrong = {
        line_of(written[0], 1, device='another'): 'these are lines of',
        line_of(written[0], 1, sha256='0'): 'its name or SHA-256 differs',
    }
    text = lines.read_text()
    for line, message in wrong.items():
        lines.write_text(f'{text}\n{line}')
        assert main(measured) == 2
        assert message in capsys.readouterr().err
    lines.write_text(text)
    fewer = [word if word != '4' else '3' for word in measured]
    assert main(fewer) == 2
    assert '1 of these nets are not among those of --nets 3 and --check 1' in capsys.readouterr().err
    lines.write_text(line_of(written[0], 1))
    assert main(measured) == 2
    assert f'--measured: {written[1].name} must be measured, too' in capsys.readouterr().err
    lines.write_text('\n'.join(line_of(page, 1) for page in written[:2]))
    assert main(measured) == 2
    assert 'a latency table needs at least 3' in capsys.readouterr().err
    for text, message in {'{"nets": {}, "sha256": ""}': 'has nets of another supernet', '[]': 'is damaged'}.items():
        (pages / browser.INDEX).write_text(text)
        assert main(measured) == 2
        assert message in capsys.readouterr().err
    (pages / browser.INDEX).unlink()
    assert main(measured) == 2
    assert 'has no nets.json' in capsys.readouterr().err
