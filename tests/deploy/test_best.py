"""Choice of the fastest file that is as accurate as PyTorch."""

import pytest

from mnv4_mm.cli import main
from mnv4_mm.deploy import best
from mnv4_mm.deploy.latency import Speed
from mnv4_mm.deploy.table import Row
from mnv4_mm.deploy.targets import TARGETS
from mnv4_mm.errors import UserError


def row(name, milliseconds, to_pytorch=0.0, passes=True):
    speed = Speed(milliseconds - 1, milliseconds, milliseconds)
    return Row(name, to_pytorch=to_pytorch, speed=(speed, speed), verdict='ok' if passes else 'differs', passes=passes)


def test_the_fastest_of_those_that_pass():
    rows = [row('a', 9), row('b', 3, -0.02, passes=False), row('c', 5, -0.001), row('d', 7)]
    chosen = best.fastest(rows)
    assert chosen is rows[2]
    assert list(best.reasons(chosen, rows)) == [
        'best for this CPU: c, 5.0 ms from image to result on one thread, -0.10 points from PyTorch',
        '  b: refused, differs',
        '  d: 1.40 times as long',
        '  a: 1.80 times as long',
    ]
    assert best.fastest([rows[1]]) is None


def test_int8_that_is_slower_than_float_is_named():
    rows = [
        row('net_nms_fp32.onnx', 4),
        row('net_nms_int8.onnx', 5),
        row('net_nms_fp32.xml', 6),
        row('net_nms_int8.xml', 3),
        row('my_int8_net_nms_fp32.tflite', 4),
        row('my_int8_net_nms_int8.tflite', 8),
        Row('net_nms_int8.pte', verdict='not run: it crashed', passes=False),
    ]
    assert best.fastest(rows) is rows[3]
    assert '  net_nms_int8.pte: refused, not run: it crashed' in best.reasons(rows[3], rows)
    lines = [line for line in best.reasons(rows[3], rows) if 'slower' in line]
    assert lines == [
        '  net_nms_int8.onnx: int8 is slower than float here, 1.25 times as long',
        '  my_int8_net_nms_int8.tflite: int8 is slower than float here, 2.00 times as long',
    ]


def test_candidates_can_run_here():
    found = list(best.candidates())
    assert (TARGETS['onnx'], 'fp32') in found
    assert (TARGETS['onnx'], 'int8') in found
    assert not any(target.runs_elsewhere or target.cannot_run() for target, _ in found)
    assert {precision for _, precision in found} <= {'fp32', 'bf16', 'int8'}


def test_other_choices_are_refused(capsys, ssdlite):
    assert main(['export', str(ssdlite), '--best-for', 'cpu', '--precision', 'int8']) == 2
    assert 'leave out --precision' in capsys.readouterr().err
    with pytest.raises(UserError, match='rounds must be at least 1, got 0'):
        best.export_best(str(ssdlite), rounds=0)


def test_a_file_that_differs_is_left_out(monkeypatch, ssdlite, tmp_path):
    """An untrained net: a candidate that cannot be exported is named, and the other is chosen."""
    pairs = [(TARGETS['openvino'], 'fp32'), (TARGETS['onnx'], 'fp32')]
    monkeypatch.setattr(best, 'candidates', lambda: iter(pairs))
    monkeypatch.setattr(best, 'check_data_of', lambda *_, **__: None)
    real = best.export
    monkeypatch.setattr(TARGETS['litert'], 'absent', lambda **_: 'it needs a package')

    def export(checkpoint, to, **options):
        if to == ['openvino']:
            raise UserError('differs from PyTorch')
        return real(checkpoint, to, **options)

    monkeypatch.setattr(best, 'export', export)
    lines: list[str] = []
    compared = {}

    def compare_checked(path, artifacts, **options):
        compared.update(artifacts=artifacts, **options)
        return [row('PyTorch', 50), *(row(one.path.name, 12) for one in artifacts)]

    monkeypatch.setattr(best, 'compare_checked', compare_checked)
    path = best.export_best(str(ssdlite), out_dir=str(tmp_path), log=lines.append)
    assert path.suffix == '.onnx'
    assert path.is_file()
    assert 'openvino in fp32 is left out: differs from PyTorch' in lines
    assert any(line.startswith('litert is left out: it needs') for line in lines)
    assert lines[-1].startswith(f'best for this CPU: {path.name}, 12.0 ms')
    assert compared['tolerances'] == (best.MAX_DIFFERENCE, best.MAX_DIFFERENCE)
    monkeypatch.setattr(best, 'compare_checked', lambda *_, **__: [row(path.name, 12, -0.1, passes=False)])
    with pytest.raises(UserError, match=r'no file has an AP or mIoU within 0\.5 points'):
        best.export_best(str(ssdlite), out_dir=str(tmp_path), log=lines.append)


@pytest.mark.long
def test_the_fastest_file_of_a_trained_net(monkeypatch, repository, tmp_path):
    """Exported, compared with PyTorch on the real data and timed."""
    pairs = [(TARGETS['onnx'], 'fp32'), (TARGETS['onnx'], 'int8')]
    monkeypatch.setattr(best, 'candidates', lambda: iter(pairs))
    lines: list[str] = []
    path = best.export_best(str(repository / 'examples/bccd.pth'), out_dir=str(tmp_path), rounds=2, log=lines.append)
    assert path.is_file()
    assert any(line.startswith(f'best for this CPU: {path.name}, ') for line in lines)
    assert any('bccd_nms_' in line and ' times as long' in line for line in lines)


def test_bf16_is_a_hint_to_openvino(ssdlite, tmp_path):
    if TARGETS['openvino'].absent(convert=True):
        pytest.skip(TARGETS['openvino'].absent(convert=True))
    from mnv4_mm.runtime import load

    (path,) = best.export(str(ssdlite), ['openvino'], precision='bf16', out_dir=str(tmp_path), log=lambda line: None)
    assert load(path).meta.precision == 'bf16'
    with pytest.raises(UserError, match='bf16'):
        best.export(str(ssdlite), ['onnx'], precision='bf16', out_dir=str(tmp_path), log=lambda line: None)
