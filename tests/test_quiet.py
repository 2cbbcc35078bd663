"""Lines that users cannot act on are not printed; everything else is."""

import pytest

from mnv4_mm.quiet import without_lines


def test_only_the_named_lines_are_dropped(capsys):
    with without_lines(('creating index', 'Done (')):
        print('creating index...')
        print('before Done (t=1s)')
        print('Done (t=', end='')
        print('1s)')
        print('two\nlines')
        print('no end', end='')
    print('; after')
    assert capsys.readouterr().out == 'before Done (t=1s)\ntwo\nlines\nno end; after\n'


def test_output_before_an_error_is_kept(capsys):
    def fail():
        with without_lines(('dropped',)):
            print('dropped')
            print('kept', end='')
            raise ValueError('x')

    with pytest.raises(ValueError, match='x'):
        fail()
    assert capsys.readouterr().out == 'kept'


def test_training_prints_no_notes_of_dependencies(run_tool, tmp_path):
    run = run_tool(
        'train.py', 'mnv4_ssdlite_coco-mini', '--epochs', 1, '--work-dir', tmp_path / 'w', '--cfg-options',
        'report_on_training_images=False', 'train_dataloader.dataset.times=1', 'val_dataloader.dataset.indices=2',
        'train_dataloader.dataset.dataset.indices=4', 'train_dataloader.batch_size=2',
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    printed = run.stdout + run.stderr
    for note in ('OneDL', 'loading annotations', 'creating index', 'index created'):
        assert note not in printed
