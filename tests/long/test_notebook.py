"""The notebook runs from its first cell to its last."""

import os

import pytest


def test_the_quick_start_notebook_runs(repository, tmp_path, monkeypatch):
    # Not at the top: tests that do not run it collect this file, too.
    nbformat, nbclient = pytest.importorskip('nbformat'), pytest.importorskip('nbclient')
    notebook = nbformat.read(repository / 'examples/quickstart.ipynb', as_version=4)
    assert not any(cell.get('outputs') for cell in notebook.cells)
    for folder in ('data', 'examples'):
        (tmp_path / folder).symlink_to(repository / folder)
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(repository), os.environ.get('PYTHONPATH', '')]))
    client = nbclient.NotebookClient(notebook, timeout=3600, resources=dict(metadata=dict(path=str(tmp_path))))
    client.execute()
    cells = [cell for cell in notebook.cells if cell.get('outputs') and 'data' in cell.outputs[-1]]
    values = [cell.outputs[-1]['data']['text/plain'] for cell in cells]
    assert 'bccd/bbox_mAP_50' in values[0]
    assert values[-1] == 'True'  # the exported file has the boxes of the checkpoint
    shown = [kind for cell in cells for kind in cell.outputs[-1]['data'] if kind.startswith('image/')]
    assert shown == ['image/png', 'image/jpeg']  # the curves, and an image of the report
    report = tmp_path / 'work_dirs/quickstart/report/index.html'
    assert any(str(report.relative_to(tmp_path)) in value for value in values)
    assert report.is_file()
    assert list((tmp_path / 'work_dirs/quickstart/exported').glob('*.onnx'))
