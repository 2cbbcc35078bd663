"""Score of a net of a supernet, without training it."""

import copy
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS, DefaultScope
from torch.nn import functional

from mnv4_mm.apis.mistakes import telling_wrong_settings
from mnv4_mm.config.checkpoint import checkpoint_config
from mnv4_mm.config.classes import set_label_order
from mnv4_mm.config.data import restore_data, with_data_roots, with_training_images
from mnv4_mm.config.input_size import set_pipeline_size
from mnv4_mm.config.supernet import space_of, with_subnet
from mnv4_mm.data.augment.load import with_one_reader
from mnv4_mm.data.fingerprint import fingerprint
from mnv4_mm.data.formats.configured import innermost_dataset
from mnv4_mm.data.held_out import KEY, part_of
from mnv4_mm.deploy.calibration import evenly
from mnv4_mm.deploy.evaluator import metric_value
from mnv4_mm.engine.building import building
from mnv4_mm.engine.runner import quiet_losses
from mnv4_mm.errors import UserError
from mnv4_mm.models.input_size import scaled_size
from mnv4_mm.models.supernet import subnet_state
from mnv4_mm.quiet import READING_ANNOTATIONS, without_lines
from mnv4_mm.search.blocks import net_macs
from mnv4_mm.search.calibrate import recalibrate
from mnv4_mm.tasks import build_model, task_of
from mnv4_mm.weights.checkpoint import Checkpoint, read_checkpoint
from mnv4_mm.weights.strict import tensor_state

CALIBRATION_IMAGES = 64
MAX_IMAGES = 500  # scored
BATCH = 16  # images of calibration, of which batch statistics are computed


class Images(NamedTuple):
    """Images that were resized for nets of one input size, in batches.

    Attributes:
        scored: Images that nets are scored on.
        calibration: Training images, from which the statistics of batch norms are computed.
    """

    scored: list[Any]
    calibration: list[Any]


class Scorer:
    """Scores nets of a supernet on the training images that were held out.

    The images are read once for each input size and kept in memory.

    Args:
        checkpoint: Checkpoint of a supernet, a file or what was read from it.
        images: Largest number of images to score on.

    Attributes:
        cfg: Config of the supernet.
        space: Its search space.
        metric: Name of the metric, ``bbox_mAP`` or ``mIoU``.
        images: Number of images that are scored on.
        digest: SHA-256 of these images, their ground truth and the images of calibration, see ``fingerprint``.
        sizes: Height and width in pixels of the first of them, for each of the space's ``scales``.

    Raises:
        UserError: The checkpoint cannot be read or is not that of a supernet, the data is missing or has changed, or
            its test pipeline does not resize images to the ``input_size`` of the config.
    """

    def __init__(self, checkpoint: str | Path | Checkpoint, images: int = MAX_IMAGES) -> None:
        loaded = read_checkpoint(checkpoint)
        self.checkpoint = loaded
        self.cfg = checkpoint_config(loaded)
        self.space = space_of(self.cfg)
        self.metric = task_of(self.cfg).metric
        self._state = tensor_state(loaded.content, loaded.path)
        data = with_training_images(with_data_roots(restore_data(copy.deepcopy(self.cfg))))
        set_label_order(data)
        scope = data.default_scope
        config = {**innermost_dataset(data.test_dataloader.dataset), 'indices': None, 'lazy_init': False}
        with (
            without_lines(READING_ANNOTATIONS),
            DefaultScope.overwrite_default_scope(scope),
            telling_wrong_settings(None, checkpoint=loaded.path),
            building('test_dataloader.dataset'),
        ):
            self._dataset = DATASETS.build(with_one_reader(config, scope))
            self._pipelines = [
                Compose(with_one_reader(_test_pipeline(data, scale), scope)) for scale in self.space.scales
            ]
        share = self.cfg.train_dataloader[KEY]
        self._indices = evenly(part_of(self._dataset, share, scored=True), images)
        self._calibrated = evenly(part_of(self._dataset, share, scored=False), CALIBRATION_IMAGES)
        self._evaluator_cfg = data.test_evaluator
        used = [fingerprint(self._dataset.get_data_info(i)) for i in (*self._indices, *self._calibrated)]
        self.digest = hashlib.sha256(json.dumps(used).encode()).hexdigest()
        self.images = len(self._indices)
        samples = [self._sample(self._indices[0], number) for number in range(len(self.space.scales))]
        self.sizes: tuple[tuple[int, int], ...] = tuple(tuple(sample['inputs'].shape[-2:]) for sample in samples)
        if len(set(self.sizes)) < len(self.sizes):
            height, width = self.sizes[0]
            raise UserError(
                f'{loaded.path}: the test pipeline resizes images to {width}x{height} for nets of different input '
                'sizes: its Resize needs a scale in pixels'
            )
        self._images = functools.cache(self._read)

    def _sample(self, index: int, number: int) -> Any:
        """Return a sample of the data set, resized for the scale with this number."""
        self._dataset.pipeline = self._pipelines[number]
        return self._dataset[index]

    def _read(self, number: int) -> Images:
        """Return all images, resized for the scale with this number."""
        size = self.sizes[number]
        scored = _batches([self._sample(i, number) for i in self._indices])
        calibration = _batches([_resized(self._sample(i, number), size) for i in self._calibrated])
        if len(calibration) > 1 and len(calibration[-1]['inputs']) == 1:
            calibration.pop()  # a norm cannot take the statistics of one value
        return Images(scored, calibration)

    def images_for(self, genes: Sequence[int]) -> Images:
        """Return the images in the input size of a net."""
        return self._images(self.space.scale_number(genes))

    def model(self, genes: Sequence[int]) -> tuple[Any, Config]:
        """Build a net with its part of the weights, and with statistics of its own in its batch norms.

        Args:
            genes: The net.

        Returns:
            The model in evaluation mode, and its config.

        Raises:
            UserError: The genes do not fit the space, or the model cannot be built.
        """
        cfg = with_subnet(self.cfg, genes)
        with quiet_losses(), telling_wrong_settings(None, checkpoint=self.checkpoint.path):
            model: Any = build_model(cfg)
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        model.load_state_dict(subnet_state(self._state, shapes, self.space.subnet(genes).rows))
        model.eval()
        recalibrate(model, self.images_for(genes).calibration)
        return model, cfg

    def score(self, genes: Sequence[int]) -> float:
        """Return AP or mIoU of a net on the images that were held out, in [0, 1].

        Raises:
            UserError: The genes do not fit the space, or the images have no ground truth.
        """
        return self.score_model(self.model(genes)[0], genes)

    def score_model(self, model: Any, genes: Sequence[int]) -> float:
        """Return AP or mIoU of a model in evaluation mode, whose backbone is a net, on the images that were held out.

        Args:
            model: A detector or segmenter with the input size of the net.
            genes: The net.

        Raises:
            UserError: The genes do not fit the space, or the images have no ground truth.
        """
        with torch.no_grad(), DefaultScope.overwrite_default_scope(self.cfg.default_scope):
            for batch in self.images_for(genes).scored:
                self._evaluator.process(data_samples=model.test_step(batch), data_batch=batch)
            metrics = self._evaluator.evaluate(self.images)  # this also forgets the images
        return metric_value(metrics, self.metric)

    @functools.cached_property
    def _evaluator(self) -> Evaluator:
        """Evaluator of the scored images. It reads the ground truth, so it is built once."""
        evaluator = Evaluator(copy.deepcopy(self._evaluator_cfg))
        evaluator.dataset_meta = self._dataset.metainfo
        if task_of(self.cfg).name == 'detection':
            for metric in evaluator.metrics:  # the annotation file has all training images
                metric.img_ids = [self._dataset.get_data_info(i)['img_id'] for i in self._indices]
        return evaluator

    def macs(self, genes: Sequence[int]) -> int:
        """Return the multiply-accumulates of the backbone of a net for the first of the scored images.

        Raises:
            UserError: The genes do not fit the space.
        """
        size = self.sizes[self.space.scale_number(genes)]
        return net_macs(self.space, genes, self.cfg.model.backbone, size)


def _test_pipeline(data: Config, scale: float) -> list[Any]:
    cfg = copy.deepcopy(data)
    set_pipeline_size(cfg, scaled_size(cfg.input_size, scale))
    return innermost_dataset(cfg.test_dataloader.dataset).pipeline


def _batches(samples: Sequence[Any]) -> list[Any]:
    """Collate samples into batches of images of one size, at most ``BATCH`` images each, in their order."""
    batches: list[list[Any]] = []
    for sample in samples:
        shape = sample['inputs'].shape
        if not batches or len(batches[-1]) == BATCH or batches[-1][0]['inputs'].shape != shape:
            batches.append([])
        batches[-1].append(sample)
    return [pseudo_collate(batch) for batch in batches]


def _resized(sample: Any, size: tuple[int, int]) -> Any:
    """Resize the image of a sample, but not its ground truth, so that images of all sizes can be in one batch."""
    if sample['inputs'].shape[-2:] == size:
        return sample
    image = functional.interpolate(sample['inputs'][None].float(), size, mode='bilinear', antialias=True)[0]
    return {**sample, 'inputs': image.round().to(sample['inputs'].dtype)}
