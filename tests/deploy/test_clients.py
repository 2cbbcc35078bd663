"""ONNX files have no part that OpenCV DNN is known to misread."""

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from mnv4_mm.deploy.export import export
from mnv4_mm.deploy.graph import crop_kernels
from mnv4_mm.deploy.quantize import quantize_onnx, store_weights_unsigned
from mnv4_mm.images import read_image
from mnv4_mm.runtime import load
from mnv4_mm.runtime.preprocess import prepare


@pytest.fixture(scope='module')
def raw(once, ssdlite):
    folder = once(
        "exported ssdlite onnx ('kind', 'raw')",
        lambda out: export(str(ssdlite), ['onnx'], out_dir=str(out), kind='raw', log=lambda line: None),
    )
    return next(folder.glob('*.onnx'))


def test_opencv_has_the_outputs_of_onnx_runtime(raw, photos):
    """All anchors, also the largest, whose feature map is 1x1."""
    predictor = load(raw)
    batch = prepare(read_image(photos[0]), predictor.meta.input, predictor.meta.resize)[0]
    net = cv2.dnn.readNetFromONNX(str(raw))
    net.setInput(batch)
    names = ('boxes', 'scores')
    for found, expected in zip(net.forward(names), predictor.run(batch), strict=True):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3 * np.abs(expected).max())


class Small(nn.Module):
    """Convolutions on maps of 5x5, 3x3 and 1x1."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Conv2d(4, 4, 3, padding=1)
        self.down = nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=4)
        self.last = nn.Conv2d(4, 4, 3, stride=3)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.dilated = nn.Conv2d(4, 4, 5, padding=6, dilation=3)
        self.uneven = nn.Conv2d(4, 2, 3, padding=2)  # not centred: its output is 3x3

    def forward(self, x):
        x = self.last(self.down(self.wide(x)))
        return self.uneven(self.dilated(self.depthwise(x)))


def test_kernels_on_one_position_are_cropped_to_their_centre():
    x = torch.rand(1, 4, 5, 5)
    net = Small().eval()
    module = torch.export.export(net, (x,)).module()
    crop_kernels(module)
    torch.testing.assert_close(module(x), net(x))
    nodes = [node for node in module.graph.nodes if node.target is torch.ops.aten.conv2d.default]
    tensors = dict(module.named_parameters(remove_duplicate=False))
    assert [tuple(tensors[node.args[1].target].shape[2:]) for node in nodes] == [
        (3, 3), (3, 3), (3, 3), (1, 1), (1, 1), (3, 3),
    ]  # fmt: skip


class Maps(nn.Module):
    """Convolutions with outputs of 16x16, 15x15 and 2x2, and one for two levels."""

    def __init__(self):
        super().__init__()
        self.many = nn.Conv2d(3, 8, 1)
        self.odd = nn.Conv2d(8, 8, 2)
        self.few = nn.Conv2d(8, 8, 8, stride=7)
        self.shared = nn.Conv2d(8, 8, 1)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.shared(self.many(x)).relu()
        return self.last(self.few(self.shared(self.odd(x)).relu()))


def test_int8_weights_are_unsigned_where_opencv_is_wrong():
    import onnxruntime as ort

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    batches = [rng.uniform(-1, 1, (1, 3, 16, 16)).astype(np.float32) for _ in range(4)]
    program = torch.onnx.export(
        Maps().eval(), (torch.from_numpy(batches[0]),), input_names=['image'], dynamo=True, verbose=False
    )
    model = quantize_onnx(program.model_proto, batches).model
    store_weights_unsigned(model)
    onnx.checker.check_model(model, full_check=True)
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    makers = {name: node for node in model.graph.node for name in node.output}
    found = {}
    for node in model.graph.node:
        if node.op_type == 'Conv' and node.input[1] in makers:
            weights, _, zero = makers[node.input[1]].input
            found[weights.split('.')[0]] = tensors[weights].dtype.name
            assert tensors[zero].dtype == tensors[weights].dtype
            assert set(tensors[zero].ravel().tolist()) == ({128} if tensors[weights].dtype == np.uint8 else {0})
    assert 'int8' in found.values()  # many: 256 positions
    assert found.pop('many', 'int8') == 'int8'
    assert set(found.values()) == {'uint8'}
    expected = ort.InferenceSession(program.model_proto.SerializeToString()).run(None, {'image': batches[0]})[0]
    actual = ort.InferenceSession(model.SerializeToString()).run(None, {'image': batches[0]})[0]
    assert np.abs(actual - expected).max() < 0.1 * np.abs(expected).max()
