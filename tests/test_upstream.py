"""What is worked around for OpenMMLab's own releases, and that it is still needed."""

import pickle

import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, checkpoint
from mmseg.registry import MODELS

from mnv4_mm import upstream
from mnv4_mm.config.load import load_config
from mnv4_mm.errors import UserError

on_upstream = pytest.mark.skipif(not upstream.IS_UPSTREAM, reason="of OpenMMLab's own releases, not of the forks")
on_forks = pytest.mark.skipif(upstream.IS_UPSTREAM, reason="of the forks, not of OpenMMLab's own releases")


@pytest.fixture
def written(tmp_path):
    """A checkpoint with the types that mmengine's Runner writes."""
    losses = HistoryBuffer([1.5, 0.5], [1, 1])
    message_hub = dict(log_scalars={'train/loss': losses}, runtime_info={'best_score': np.float64(0.25)})
    content = dict(state_dict={'a': torch.ones(2)}, meta=dict(iter=2), message_hub=message_hub)
    torch.save(content, tmp_path / 'iter_2.pth')
    return str(tmp_path / 'iter_2.pth')


def test_mmengine_reads_a_checkpoint_of_its_own(written):
    content = CheckpointLoader.load_checkpoint(written, map_location='cpu')
    assert content['state_dict']['a'].tolist() == [1, 1]
    assert content['message_hub']['log_scalars']['train/loss'].mean() == 1
    assert content['message_hub']['runtime_info']['best_score'] == 0.25


@on_upstream
def test_mmengine_still_cannot_read_a_checkpoint_of_its_own(written):
    """If this fails, mmengine has fixed it: ``upstream.load_from_local`` is needed no longer."""
    with pytest.raises(pickle.UnpicklingError, match='HistoryBuffer'):
        checkpoint.load_from_local(written, 'cpu')


@on_upstream
def test_what_would_run_code_is_refused(tmp_path, payload):
    torch.save(dict(state_dict={}, meta=dict(extra=payload)), tmp_path / 'bad.pth')
    with pytest.raises(UserError, match='would run code'):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'bad.pth'))
    assert not (tmp_path / 'ran').exists()


@on_forks
def test_with_the_forks_mmengine_reads_by_itself():
    assert CheckpointLoader._schemes[''] is checkpoint.load_from_local


@on_upstream
def test_mmseg_still_warns_about_itself():
    """If this fails, mmseg has fixed it: ``upstream.DEPRECATED_LOSSES`` is needed no longer."""
    head = ConfigDict(type='mmseg.FCNHead', in_channels=4, channels=4, num_classes=3)
    with pytest.warns(UserWarning, match=upstream.DEPRECATED_LOSSES):
        MODELS.build(head)


@pytest.mark.parametrize('converts', [True, False])
@pytest.mark.parametrize('name', ['mmdet.DetDataPreprocessor', 'mmseg.SegDataPreProcessor'])
def test_the_order_of_channels_is_known_in_both(name, converts):
    size = dict(size=(8, 8)) if 'mmseg' in name else {}
    preprocessor = MODELS.build(dict(type=name, mean=[0] * 3, std=[1] * 3, bgr_to_rgb=converts, **size))
    assert upstream.converts_channels(preprocessor) is converts


STANDARD = 'import os\nmodel = dict(a=os.path.basename("x/y"))\ndel os\n'


def test_a_config_may_import_the_standard_library(tmp_path):
    path = tmp_path / 'own.py'
    path.write_text(STANDARD)
    assert load_config(path).model.a == 'y'


@on_upstream
def test_mmengine_still_takes_the_standard_library_for_lazy_imports(tmp_path):
    """If this fails, mmengine has fixed it: ``upstream.lazy_import`` is needed no longer."""
    path = tmp_path / 'own.py'
    path.write_text(STANDARD)
    assert Config._is_lazy_import(str(path))


@on_upstream
@pytest.mark.parametrize(
    'text', ['a = 1', 'from mmengine.config import read_base', 'from .base import model', 'import os, mmdet']
)
def test_other_configs_are_left_to_mmengine(tmp_path, text):
    path = tmp_path / 'own.py'
    path.write_text(text)
    assert upstream.lazy_import(path) is None
