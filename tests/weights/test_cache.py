"""Published weights are found where torch and the hub's client look for them."""

import sys
from pathlib import Path

import pytest
import torch

from mnv4_mm.weights.cache import cached_path, is_cached

TAG = 'mobilenetv4_conv_small.e2400_r224_in1k'


@pytest.mark.parametrize(
    'environment', [dict(), dict(TORCH_HOME='/elsewhere'), dict(TORCH_HOME='~/here'), dict(XDG_CACHE_HOME='/cache')]
)
def test_the_folder_is_torchs_without_importing_torch(environment, monkeypatch):
    for name in ('TORCH_HOME', 'XDG_CACHE_HOME'):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.hub, '_hub_dir', None)
    expected = Path(torch.hub.get_dir()) / 'checkpoints' / f'{TAG}.safetensors'
    assert cached_path(TAG) == expected
    monkeypatch.delitem(sys.modules, 'torch')
    assert cached_path(TAG) == expected


def test_a_file_in_the_folder_is_cached_without_the_hubs_client(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path))
    monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
    assert not is_cached(TAG)
    (tmp_path / 'checkpoints').mkdir()
    cached_path(TAG).touch()
    assert is_cached(TAG)
