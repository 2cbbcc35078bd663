"""Alpha, 16 bits, grey and thin images mean the same to the reader, to a checkpoint and to its exported file."""

import cv2
import numpy as np
import pytest

from mnv4_mm import load
from mnv4_mm.deploy.export import export
from mnv4_mm.images import read_image

KINDS = ('colour', 'alpha', 'grey_alpha', 'grey', 'thermal', 'deep', 'one_pixel', 'thin', 'high')


@pytest.fixture(scope='module')
def models(once, ssdlite, lraspp):
    """For each net the checkpoint and its ONNX file (the one of test_targets.py), as ``load`` returns them."""

    def convert(checkpoint, size):
        return lambda folder: export(str(checkpoint), ['onnx'], out_dir=str(folder), size=size, log=lambda line: None)

    nets = dict(ssdlite=(ssdlite, None), lraspp=(lraspp, (128, 160)))
    folders = {name: once(f'exported {name} onnx', convert(*net)) for name, net in nets.items()}
    return {
        name: (load(nets[name][0], device='cpu'), load(next(folder.glob('*.onnx')))) for name, folder in folders.items()
    }


def content(kind, photo):
    image = cv2.imread(str(photo))
    grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    opaque = np.full(grey.shape, 255, np.uint8)
    return dict(
        colour=image,
        alpha=np.dstack([image, opaque // 2]),
        grey_alpha=np.dstack([grey, grey, grey, opaque]),
        grey=grey,
        thermal=(grey.astype(np.uint16) << 4) + 7,  # 12 bits of a sensor
        deep=image.astype(np.uint16) * 257,
        one_pixel=image[:1, :1],
        thin=cv2.resize(image, (4000, 2)),
        high=cv2.resize(image, (1, 1500)),
    )[kind]


@pytest.mark.parametrize('net', ['ssdlite', 'lraspp'])
@pytest.mark.parametrize('kind', KINDS)
def test_an_image_means_the_same_everywhere(kind, net, models, photos, tmp_path):
    stored = content(kind, photos[0])
    path = tmp_path / f'{kind}.png'
    cv2.imwrite(str(path), stored)
    pixels = read_image(path)
    expected = stored >> 8 if stored.dtype == np.uint16 else stored
    expected = np.repeat(expected[..., None], 3, axis=2) if expected.ndim == 2 else expected[..., :3]
    np.testing.assert_array_equal(pixels, expected)
    results = [predictor(path) for predictor in models[net]]
    for result in results:
        np.testing.assert_array_equal(result.image, pixels)
        assert result.plot().shape[0] >= pixels.shape[0]
    checkpoint, file = results
    if net == 'lraspp':
        assert checkpoint.class_map.shape == file.class_map.shape == pixels.shape[:2]
        return  # the file has an input size of its own
    assert len(checkpoint) == len(file) > 0
    # Noise decides between boxes that are nearly equal, of which images of one colour have many.
    np.testing.assert_allclose(checkpoint.scores[:20], file.scores[:20], rtol=0, atol=5e-3)
