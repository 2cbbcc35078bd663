"""Speed of exported files on one thread: detection against mmdet, and class maps against upsampling all logits."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import onnxruntime as ort
import torch
from mmdet.apis import inference_detector
from mmengine.config import Config
from mmengine.registry import DefaultScope
from onnx import parser
from torch import nn

from mnv4_mm.bench.measure import Pair
from mnv4_mm.config.index import REPOSITORY
from mnv4_mm.config.load import load_config
from mnv4_mm.deploy.best import has_bf16
from mnv4_mm.deploy.describe import describe
from mnv4_mm.deploy.export import write
from mnv4_mm.deploy.graph import build_graph
from mnv4_mm.deploy.targets import TARGETS
from mnv4_mm.deploy.targets.onnx import OPSET, class_map
from mnv4_mm.images import read_image
from mnv4_mm.runtime import load
from mnv4_mm.runtime.meta import Precision
from mnv4_mm.runtime.predictor import Predictor
from mnv4_mm.runtime.preprocess import prepare
from mnv4_mm.tasks import build_model

IMAGES = REPOSITORY / 'data/mini/coco/train2017'
ROUNDS, CALLS = 10, 10
CANDIDATES = 500  # pairs of box and class above the score threshold, per image


def predictor_pairs() -> list[Pair]:
    """Return pairs that time SSDLite at 320x320 from JPEG file to boxes.

    Exported files with NMS are compared with mmdet. ONNX in float32 is always measured; ONNX in int8 and OpenVINO in
    bf16 and int8 only where they can be exported and run. The float32 file is also compared with decoding the JPEG and
    running the bare ONNX Runtime session. With photos of 2048x1536, ``fast_jpeg`` is compared with whole images.
    """
    model = untrained_detector('mnv4_ssdlite_coco')
    predictor = export_predictor(model)
    others: tuple[tuple[str, Precision], ...] = (('onnx', 'int8'), ('openvino', 'bf16'), ('openvino', 'int8'))
    predictors = [
        export_predictor(model, name, precision)
        for name, precision in others
        if not TARGETS[name].absent(convert=True) and (precision != 'bf16' or has_bf16())
    ]
    images = itertools.cycle(sorted(IMAGES.glob('*.jpg')))

    def run(file: Predictor) -> Callable[[], object]:
        return lambda: file(next(images))

    def run_mmdet() -> None:
        with single_thread(), DefaultScope.overwrite_default_scope('mmdet'):
            inference_detector(model, str(next(images)))

    batch, _ = prepare(read_image(next(images)), predictor.meta.input, predictor.meta.resize)

    def decode_and_run_session() -> None:
        read_image(next(images))
        predictor.session(batch)

    photo = cv2.resize(read_image(next(images)), (2048, 1536), interpolation=cv2.INTER_CUBIC)
    photo_file = cv2.imencode('.jpg', photo)[1].tobytes()
    fast = Predictor(predictor.meta, predictor.session, fast_jpeg=True)

    def run_photo(file: Predictor) -> Callable[[], object]:
        def call() -> object:
            batch, placement = file.prepare(photo_file, 'photo.jpg')
            return file.finish(file.run(batch), placement)

        return call

    name = 'SSDLite MNv4-Conv-S, 320x320, JPEG to boxes, one thread'
    return [
        Pair(f'{name}: onnx against mmdet', run(predictor), run_mmdet, 4, ROUNDS, calls=CALLS),
        *(
            Pair(
                f'{name}: {one.meta.target} in {one.meta.precision} against mmdet',
                run(one),
                run_mmdet,
                5 if (one.meta.target, one.meta.precision) == ('openvino', 'int8') else None,
                ROUNDS,
                calls=CALLS,
            )
            for one in predictors
        ),
        Pair(f'{name}: onnx against decoding and the bare session', run(predictor), decode_and_run_session, target=0.8),
        Pair(
            f'{name}, a photo of 2048x1536: onnx with fast_jpeg against the whole photo',
            run_photo(fast),
            run_photo(predictor),
            rounds=ROUNDS,
            calls=CALLS,
        ),
    ]


def untrained_detector(name: str) -> Any:
    """Build an untrained SSDLite that detects about as many boxes as a trained one.

    The batch norms of the model have the statistics of real images, and the class logits vary as in a trained net. On
    average, ``CANDIDATES`` pairs of box and class per image exceed the score threshold, because the cost of NMS depends
    on their number.

    Args:
        name: Name of a config.
    """
    torch.manual_seed(0)
    cfg = load_config(name)
    model: Any = build_model(cfg)
    images = [cv2.resize(read_image(path), (320, 320)) for path in sorted(IMAGES.glob('*.jpg'))[:8]]
    batch = torch.from_numpy(np.stack(images)[..., ::-1].transpose(0, 3, 1, 2).copy()).float()
    batch = (batch - 120) / 58
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.momentum = None
    with torch.no_grad():
        model.train()(batch, mode='tensor')
        classes = model.bbox_head.cls_out_channels
        class_convolutions = [
            [module for module in level.modules() if isinstance(module, nn.Conv2d)][-1]
            for level in model.bbox_head.cls_convs
        ]
        factor = 2 / float(_class_logits(model.eval(), batch, classes).std())
        for convolution in class_convolutions:
            convolution.weight *= factor
        logits = _class_logits(model, batch, classes)
        low, high = 0.0, 20.0  # bisection of the bias of the background class
        while high - low > 1e-3:
            middle = (low + high) / 2
            logits[:, -1] += middle
            count = (logits.softmax(1)[:, :-1] > model.bbox_head.test_cfg.score_thr).sum() / len(images)
            logits[:, -1] -= middle
            low, high = (middle, high) if count > CANDIDATES else (low, middle)
        for convolution in class_convolutions:
            assert convolution.bias is not None
            convolution.bias[classes - 1 :: classes] += low
    return add_metadata(model, cfg)


def add_metadata(model: Any, cfg: Config) -> Any:
    """Set the attributes of an untrained detector that ``apis.model.load_model`` sets from a checkpoint.

    Args:
        model: The detector, which is changed in place.
        cfg: Config of the detector.

    Returns:
        ``model``.
    """
    model.cfg, model.checkpoint_meta = cfg, {}
    model.dataset_meta = dict(classes=tuple(map(str, range(model.bbox_head.num_classes))))
    return model


def _class_logits(model: Any, batch: torch.Tensor, classes: int) -> torch.Tensor:
    """Return the class logits of all anchors of all levels and images, (anchors, classes)."""
    levels = model(batch, mode='tensor')[0]
    return torch.cat([level.permute(0, 2, 3, 1).reshape(-1, classes) for level in levels])


def export_predictor(model: Any, name: str = 'onnx', precision: Precision = 'fp32') -> Predictor:
    """Export a model and load the exported file, to run on one thread.

    Args:
        model: The model, with the attributes that ``add_metadata`` sets.
        name: Name of the target in ``TARGETS``.
        precision: Precision of the export. For ``int8``, eight images of the small data set are used for calibration.
    """
    target = TARGETS[name]
    meta = describe(model, target, precision=precision)
    images = sorted(IMAGES.glob('*.jpg'))[:8] if precision == 'int8' else []
    batches = [prepare(read_image(path), meta.input, meta.resize)[0] for path in images]
    with TemporaryDirectory() as folder:
        path = Path(folder) / f'net{target.suffix}'
        write(build_graph(model, meta), target, path, batches)
        return load(path, threads=1)


@contextmanager
def single_thread() -> Iterator[None]:
    """Context manager in which torch uses one thread only."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def class_map_pairs(classes: int = 150, side: int = 64, factor: int = 8) -> list[Pair]:
    """Return a pair that times the last step of an exported segmenter: from low-resolution logits to the class map.

    The baseline upsamples all logits and then takes the best class of each pixel. The logits are smooth, as in a real
    net: in a quarter of the squares between four neighbouring positions, the corners do not all have the same best
    class.

    Args:
        classes: Number of classes.
        side: Height and width of the logits.
        factor: Output stride of the logits, by which they are upsampled.
    """
    rng = torch.Generator().manual_seed(0)
    coarse = torch.randn((1, classes, 5, 5), generator=rng)
    logits = nn.functional.interpolate(coarse, (side, side), mode='bicubic').numpy()
    enlarge_all = f"""
    enlarge_all (float[1, {classes}, h, w] all_logits) => (int64[1, H, W] class_map)
    <float[4] scales = {{1, 1, {factor}, {factor}}}>
    {{
        full = Resize <mode = "linear"> (all_logits, , scales)
        class_map = ArgMax <axis = 1, keepdims = 0> (full)
    }}"""
    ours, baseline = (_runner(text, logits) for text in (class_map(factor, classes), enlarge_all))
    assert (ours()[0] == baseline()[0]).mean() > 0.9999
    size = side * factor
    name = f'class map, {classes} classes, {side}x{side} logits to {size}x{size}, one thread: against enlarging all'
    return [Pair(name, ours, baseline)]


def _runner(text: str, logits: np.ndarray) -> Callable[[], list[np.ndarray]]:
    """Return a function that runs a graph in ONNX's text format on one thread."""
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : {OPSET}]>\n{text}')
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options)
    return lambda: session.run(None, {'all_logits': logits})
