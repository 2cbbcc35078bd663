"""Planted faults, at least one per subpackage: mistakes that a programmer could make and that run without an error."""

from typing import NamedTuple


class Fault(NamedTuple):
    """A mistake in one file.

    Attributes:
        name: Short description.
        file: Path in the repository.
        old: Text that is replaced; it occurs exactly once in the file.
        new: Text with the mistake.
        tests: Tests of the short suite that are run against it.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


FAULTS = (
    # images
    Fault(
        'decode images with swapped channels',
        'mnv4_mm/images.py',
        'if reduction == 1 or is_jpeg:\n        return pixels',
        'if reduction == 1 or is_jpeg:\n        return pixels[..., ::-1]',
        ('tests/test_images.py',),
    ),
    # models
    Fault(
        'pad 5x5 convolutions by one pixel less',
        'mnv4_mm/models/layers.py',
        'padding=kernel // 2 * dilation,',
        'padding=min(kernel // 2, 1) * dilation,',
        ('tests/models/test_parity.py',),
    ),
    Fault(
        'put the stride on the wrong depthwise convolution',
        'mnv4_mm/models/layers.py',
        '(1, stride) if middle_dw else (stride, 1)',
        '(stride, 1) if start_dw else (1, stride)',
        ('tests/models/test_parity.py',),
    ),
    Fault(
        'code boxes of smaller inputs relative to their anchors',
        'mnv4_mm/models/supernet.py',
        'width - math.log(factor), height - math.log(factor)]',
        'width, height]',
        ('tests/engine/test_sandwich.py',),
    ),
    Fault(
        'scale attention by the number of heads',
        'mnv4_mm/models/layers.py',
        'q.shape[-1] ** -0.5',
        'q.shape[1] ** -0.5',
        ('tests/models/test_mobilenetv4.py', '-k', 'attention'),
    ),
    Fault(
        'forget the transpose of the attention output',
        'mnv4_mm/models/layers.py',
        'out = out.transpose(-1, -2).reshape(',
        'out = out.reshape(',
        ('tests/models/test_parity.py',),
    ),
    Fault(
        'do not freeze the stem',
        'mnv4_mm/models/mobilenetv4.py',
        'for module in (self.conv_stem, self.bn1, *self.blocks[: self.frozen_stages]):',
        'for module in self.blocks[: self.frozen_stages]:',
        ('tests/models/test_mobilenetv4.py', '-k', 'frozen'),
    ),
    Fault(
        'dilate twice as far',
        'mnv4_mm/models/arch.py',
        'dilation *= removed_stride',
        'dilation *= removed_stride**2',
        ('tests/models/test_mobilenetv4.py', '-k', 'dilat'),
    ),
    Fault(
        'use a bias of the classes that does not start rare',
        'mnv4_mm/models/heads.py',
        'bias=bias_init_with_prob(0.01)',
        'bias=bias_init_with_prob(0.5)',
        ('tests/models/test_heads.py',),
    ),
    # weights
    Fault(
        'load weights that do not fit without an error',
        'mnv4_mm/weights/strict.py',
        "'missing': [key for key in expected if key not in state],",
        "'missing': [],",
        ('tests/weights/test_strict.py',),
    ),
    Fault(
        'unpickle anything in a checkpoint',
        'mnv4_mm/weights/checkpoint.py',
        'map_location=map_location, weights_only=True',
        'map_location=map_location, weights_only=False',
        ('tests/weights',),
    ),
    # runtime
    Fault(
        'feed BGR to a model of RGB',
        'mnv4_mm/runtime/preprocess.py',
        "if to.channel_order == 'RGB':",
        "if to.channel_order == 'BGR':",
        ('tests/runtime', 'tests/deploy/test_graph.py'),
    ),
    Fault(
        'swap height and width when boxes return to the image',
        'mnv4_mm/runtime/results.py',
        'y, x = (original / placed',
        'x, y = (original / placed',
        ('tests/runtime',),
    ),
    Fault(
        'return boxes as (x1, y1, x2, y2) in COCO results',
        'mnv4_mm/runtime/results.py',
        'bbox=[x1, y1, x2 - x1, y2 - y1],',
        'bbox=[x1, y1, x2, y2],',
        ('tests/runtime', 'tests/apis/test_infer.py'),
    ),
    Fault(
        'count category ids from 0',
        'mnv4_mm/runtime/results.py',
        'category_id=label + 1 if',
        'category_id=label if',
        ('tests/runtime', 'tests/apis/test_infer.py'),
    ),
    Fault(
        'accept a changed exported file',
        'mnv4_mm/runtime/meta.py',
        'if sha256(part) != expected:',
        'if not sha256(part):',
        ('tests/runtime', 'tests/deploy/test_targets.py'),
    ),
    # data
    Fault(
        'keep the left edge of flipped boxes',
        'mnv4_mm/data/augment/ssd.py',
        'boxes[:, [0, 2]] = self.scale[0] - boxes[:, [2, 0]]',
        'boxes[:, [0, 2]] = self.scale[0] - boxes[:, [0, 2]]',
        ('tests/data/augment',),
    ),
    Fault(
        'shift a resized image by half a pixel',
        'mnv4_mm/data/augment/pixels.py',
        'start = 0.5 * step - 0.5 + first / reduction',
        'start = first / reduction',
        ('tests/data/augment',),
    ),
    Fault(
        'flip the image but not the mask',
        'mnv4_mm/data/augment/seg.py',
        'pixels, labels = cv2.flip(pixels, 1), cv2.flip(labels, 1)',
        'pixels = cv2.flip(pixels, 1)',
        ('tests/data/augment',),
    ),
    Fault(
        'accept boxes outside the image',
        'mnv4_mm/data/check.py',
        'return -x, -y, x + width - image_width, y + height - image_height',
        'return -x, -y, x - image_width, y - image_height',
        ('tests/data/test_check.py',),
    ),
    Fault(
        "count the pixels of Pascal VOC's boxes from 0",
        'mnv4_mm/data/formats/voc.py',
        'offset = 0 if any(_is_from_zero(tree) for tree in trees.values()) else 1',
        'offset = 0',
        ('tests/data/formats/test_voc.py', 'tests/data/formats/test_round_trip.py'),
    ),
    Fault(
        "take the centre of YOLO's boxes for their corner",
        'mnv4_mm/data/formats/yolo_rows.py',
        '_shortest((cx - w / 2) * width, 0.75 * unit * width)',
        '_shortest(cx * width, 0.75 * unit * width)',
        ('tests/data/formats/test_yolo.py',),
    ),
    Fault(
        'number prepared annotations from 0',
        'mnv4_mm/data/prepare.py',
        'for number, annotation in enumerate(annotations, 1)]',
        'for number, annotation in enumerate(annotations)]',
        ('tests/data/test_prepare.py',),
    ),
    Fault(
        'match classes by position',
        'mnv4_mm/data/classes.py',
        'return [list(found).index(name) for name in required]',
        'return [*range(len(found))]',
        ('tests/data/test_prepare.py', 'tests/data/test_masks.py'),
    ),
    Fault(
        'do not notice that images cannot be decoded',
        'mnv4_mm/data/check.py',
        'if result.problem:',
        'if result.problem == MISSING:',
        ('tests/data/test_check.py',),
    ),
    Fault(
        'accept in a file that a config names what --data leaves out',
        'mnv4_mm/data/coco_files.py',
        'finding.rule is not Rule.HARMLESS and',
        'finding.rule is Rule.FATAL and',
        ('tests/data/test_coco_files.py',),
    ),
    Fault(
        'let near-duplicates be on both sides of a split',
        'mnv4_mm/data/split.py',
        'near, frames = _near_pairs(hashes), _series_pairs(names, hashes)',
        'near, frames = np.empty((0, 2), int), _series_pairs(names, hashes)',
        ('tests/data/test_split.py',),
    ),
    Fault(
        'allow a third of the data to be left out',
        'mnv4_mm/data/checked.py',
        'return self.dropped > MAX_DROPPED * self.found',
        'return self.dropped > 0.33 * self.found',
        ('tests/data/test_check.py', 'tests/data/test_prepare.py'),
    ),
    Fault(
        'shift the values of masks by one class',
        'mnv4_mm/data/prepare_masks.py',
        'canonical = table[values]',
        'canonical = np.roll(table, 1)[values]',
        ('tests/data/test_masks.py',),
    ),
    Fault(
        'label categories in the order of their ids',
        'mnv4_mm/data/coco_dataset.py',
        'for label, cat_id in enumerate(self.cat_ids)}',
        'for label, cat_id in enumerate(sorted(self.cat_ids))}',
        ('tests/data/test_coco_dataset.py',),
    ),
    # engine
    Fault(
        'count unlabelled pixels',
        'mnv4_mm/engine/iou.py',
        'ignored = ground_truth == ignore_index',
        'ignored = ground_truth == num_classes + ignore_index',
        ('tests/engine/test_iou.py',),
    ),
    Fault(
        'divide intersection by the sum of areas',
        'mnv4_mm/engine/iou.py',
        'iou = intersection / (predicted + ground_truth - intersection)',
        'iou = intersection / (predicted + ground_truth)',
        ('tests/engine/test_iou.py',),
    ),
    Fault(
        'compute mAP at the last number of detections',
        'mnv4_mm/engine/coco_metric.py',
        "'mAP': Statistic('precision', limit=None),",
        "'mAP': Statistic('precision'),",
        ('tests/engine/test_coco_metric.py',),
    ),
    Fault(
        'take the box with the id 0 for missed',
        'mnv4_mm/engine/ground_truth.py',
        'type(number) is int and number > 0 for',
        'type(number) is int and number >= 0 for',
        ('tests/engine/test_coco_metric.py',),
    ),
    Fault(
        'use the layout that corrupts memory',
        'mnv4_mm/engine/step.py',
        'part.in_channels // part.groups < 16',
        'part.in_channels // part.groups < 1',
        ('tests/engine/test_step.py',),
    ),
    # tasks
    Fault(
        'keep 0 as a class of own masks',
        'mnv4_mm/tasks/segmentation.py',
        'dataset.reduce_zero_label = True',
        'dataset.reduce_zero_label = False',
        ('tests/tasks',),
    ),
    Fault(
        'predict in windows that do not overlap',
        'mnv4_mm/tasks/segmentation.py',
        'tuple(length * 2 // 3 for length in size)',
        'tuple(size)',
        ('tests/tasks', 'tests/config'),
    ),
    # apis
    Fault(
        'evaluate the test images when asked for the training images',
        'mnv4_mm/apis/evaluate.py',
        "cfg = with_training_images(cfg) if on == 'train' else copy.deepcopy(cfg)",
        "cfg = with_training_images(cfg) if on == 'training' else copy.deepcopy(cfg)",
        ('tests/apis/test_evaluate.py',),
    ),
    Fault(
        'write drawn images over the source images',
        'mnv4_mm/apis/infer.py',
        'if out.resolve() == (path if path.is_dir() else path.parent).resolve():',
        'if out == path:',
        ('tests/apis/test_infer.py', 'tests/tools/test_cli.py'),
    ),
    # config
    Fault(
        'evaluate on the training images instead of the validation images',
        'mnv4_mm/config/data.py',
        'val_dataloader=layout.val, test_dataloader=layout.val',
        'val_dataloader=layout.train, test_dataloader=layout.train',
        ('tests/config', 'tests/tasks'),
    ),
    Fault(
        'give a benchmark name to the score of own data',
        'mnv4_mm/config/data.py',
        'cfg[evaluator].prefix = layout.root.resolve().name',
        'pass',
        ('tests/config', 'tests/tasks'),
    ),
    Fault(
        'scale milestones in the wrong direction',
        'mnv4_mm/config/schedule.py',
        'return round(point * length / before)',
        'return round(point * before / length)',
        ('tests/config',),
    ),
    Fault(
        'give each epoch the random numbers of the first',
        'mnv4_mm/data/loading.py',
        'yield Position(index, (self.seed, get_rank(), self.epoch, place))',
        'yield Position(index, (self.seed, get_rank(), 0, place))',
        ('tests/data/test_loading.py',),
    ),
    Fault(
        'use weights that do not match their checksums',
        'mnv4_mm/paths.py',
        'if part.CRC and not _is_whole(archive, part):',
        'if not part.CRC and not _is_whole(archive, part):',
        ('tests/weights/test_checkpoint.py',),
    ),
    Fault(
        'resume a damaged checkpoint of a run',
        'mnv4_mm/weights/work_dir.py',
        'for path in paths:',
        'for path in paths[:1]:',
        ('tests/engine/test_training_guards.py',),
    ),
    Fault(
        'measure a checkpoint by the position of its classes',
        'mnv4_mm/config/classes.py',
        'task_of(cfg).set_class_order(cfg, dataset, classes, trained_on)',
        'task_of(cfg).set_class_order(cfg, dataset, classes, classes)',
        ('tests/config/test_classes.py',),
    ),
    Fault(
        'overwrite a finished run',
        'mnv4_mm/config/resume.py',
        'if last and not cfg.resume:',
        'if last and cfg.resume is None:',
        ('tests/config',),
    ),
    Fault(
        'keep the old channels of the neck for another backbone',
        'mnv4_mm/models/model_config.py',
        'part[key] = type(value)([*new, *value[len(old) :]])',
        'part[key] = type(value)([*old, *value[len(old) :]])',
        ('tests/config',),
    ),
    Fault(
        'train in half precision on a CPU',
        'mnv4_mm/config/rules.py',
        "if dtype == 'fp16' and not on_gpu:",
        "if dtype == 'fp16' and on_gpu is None:",
        ('tests/engine/test_step.py', '-k', 'precision or fp16 or amp'),
    ),
    # deploy
    Fault(
        'decode box sizes without the half',
        'mnv4_mm/deploy/graph.py',
        '.exp() * (side * 0.5)',
        '.exp() * side',
        ('tests/deploy/test_graph.py',),
    ),
    Fault(
        'normalise twice',
        'mnv4_mm/deploy/graph.py',
        'self.normalise = not to.normalise',
        'self.normalise = True',
        ('tests/deploy/test_graph.py',),
    ),
    Fault(
        'leave the background among the classes',
        'mnv4_mm/deploy/graph.py',
        'scores.softmax(-1)[..., :-1]',
        'scores.softmax(-1)[..., 1:]',
        ('tests/deploy/test_graph.py',),
    ),
    Fault(
        'pass a file whose outputs differ',
        'mnv4_mm/deploy/compare.py',
        "if meta.precision == 'fp32' and not row.raw.largest <= tolerances.fp:",
        "if meta.precision == 'fp32' and row.raw.largest < 0:",
        ('tests/deploy/test_compare.py',),
    ),
    Fault(
        'quantise sensitive layers',
        'mnv4_mm/deploy/sensitivity.py',
        'MAX_SQNR_DB = 25.0',
        'MAX_SQNR_DB = -25.0',
        ('tests/deploy/test_quantize.py',),
    ),
    Fault(
        'write a step instead of a scale into ncnn files',
        'mnv4_mm/deploy/quantize_ncnn.py',
        'np.array(LEVELS / limit if limit',
        'np.array(limit / LEVELS if limit',
        ('tests/deploy/test_quantize_ncnn.py',),
    ),
    Fault(
        'leave no detection for a second match',
        'mnv4_mm/deploy/difference.py',
        'free[candidates[distance.argmin()]] = False',
        'free[candidates] = False',
        ('tests/deploy/test_compare.py',),
    ),
    # cli
    Fault(
        'end with exit code 1 for a mistake',
        'mnv4_mm/cli/exit_codes.py',
        "print(f'error: {text}', file=sys.stderr)\n    return 2",
        "print(f'error: {text}', file=sys.stderr)\n    return 1",
        ('tests/tools/test_cli.py',),
    ),
    Fault(
        'end a failed comparison with exit code 0',
        'mnv4_mm/cli/deploy.py',
        'return 0 if all(row.passes for row in rows) else 1',
        'return 0 if any(row.passes for row in rows) else 1',
        ('tests/deploy/test_compare.py',),
    ),
    # training
    Fault(
        'go on after a loss that is not finite',
        'mnv4_mm/engine/guards.py',
        'if values and not torch.stack(',
        'if False and not torch.stack(',
        ('tests/engine/test_training_guards.py',),
    ),
    Fault(
        'repeat the random numbers of the first epoch',
        'mnv4_mm/data/loading.py',
        'yield Position(index, (self.seed, get_rank(), self.epoch, place))',
        'yield Position(index, (self.seed, get_rank(), 0, place))',
        ('tests/data/test_loading.py',),
    ),
    Fault(
        'resume from a damaged checkpoint',
        'mnv4_mm/files.py',
        '_sync(part)\n        part.replace(path)',
        '_sync(part)\n        path.write_bytes(part.read_bytes()[: -100 if sync else None])',
        ('tests/engine/test_training_guards.py',),
    ),
    Fault(
        'resume from another checkpoint on each machine',
        'mnv4_mm/apis/train.py',
        'if other != starts[0]:',
        'if False:',
        ('tests/test_many_machines.py', '-k', 'start_from_one_checkpoint'),
    ),
    Fault(
        'let each worker of a process group train alone',
        'mnv4_mm/apis/launch.py',
        'if get_world_size() > 1 or (by_torchrun and not is_distributed()):',
        'if by_torchrun and not is_distributed():',
        ('tests/test_many_machines.py', '-k', 'without_a_launcher'),
    ),
    # search
    Fault(
        'take the corner of a kernel, not its centre',
        'mnv4_mm/models/supernet.py',
        'start = (old - new) // 2 if position >= 2 else 0',
        'start = 0',
        ('tests/models/test_space.py',),
    ),
    Fault(
        'give a net the blocks that come first in the supernet',
        'mnv4_mm/models/supernet.py',
        'rows[int(stage)][int(row)]',
        'int(row)',
        ('tests/models/test_space.py',),
    ),
    Fault(
        'train the supernet on the images that nets are scored on',
        'mnv4_mm/data/held_out.py',
        'held_out[i] == scored',
        'held_out[i] != scored',
        ('tests/engine/test_sandwich.py', '-k', 'left_to_train'),
    ),
    Fault(
        'resize the images of a smaller net, but not their boxes',
        'mnv4_mm/engine/sandwich.py',
        'setattr(scaled, name, instances)',
        'setattr(scaled, name, sample.get(name))',
        ('tests/engine/test_sandwich.py', '-k', 'resized_with'),
    ),
    Fault(
        'score all nets of a search with the largest input',
        'mnv4_mm/search/score.py',
        'set_pipeline_size(cfg, scaled_size(cfg.input_size, scale))',
        'set_pipeline_size(cfg, scaled_size(cfg.input_size, 1))',
        ('tests/search/test_search.py', '-k', 'score_is and lraspp'),
    ),
    Fault(
        'train nets alone on the images that they are scored on',
        'mnv4_mm/search/rank.py',
        'cfg.train_dataloader[KEY] = scorer.cfg.train_dataloader[KEY]',
        'pass',
        ('tests/search/test_rank.py', '-k', 'scored_both_ways'),
    ),
    Fault(
        'keep the norm statistics of the largest net',
        'mnv4_mm/search/calibrate.py',
        'nn.Module.train(norm)',
        'norm.eval()',
        ('tests/search/test_search.py', '-k', 'own_statistics'),
    ),
    Fault(
        'count a block that a net has twice once',
        'mnv4_mm/search/latency.py',
        'sum(times[block] for block in blocks)',
        'sum(times[block] for block in set(blocks))',
        ('tests/search/test_latency.py', '-k', 'priced'),
    ),
    Fault(
        'fit whole nets with the worst penalty',
        'mnv4_mm/search/predict.py',
        'best = min(',
        'best = max(',
        ('tests/search/test_latency.py', '-k', 'predicted_well'),
    ),
    # export
    Fault(
        'accept every exported file',
        'mnv4_mm/deploy/verify.py',
        'return self.difference <= self.limit',
        'return True',
        ('tests/deploy/test_verify.py',),
    ),
    # report
    Fault(
        'count a multiply-accumulate twice',
        'mnv4_mm/models/complexity.py',
        'counter.get_total_flops() // 2',
        'counter.get_total_flops()',
        ('tests/report/test_complexity.py', 'tests/models/test_heads.py'),
    ),
    Fault(
        'show the AP of a class in the row of another',
        'mnv4_mm/report/detections.py',
        'order = [list(evaluation.params.catIds).index(category_id) for category_id in category_ids]',
        'order = list(range(len(category_ids)))[::-1]',
        ('tests/report/test_training_report.py',),
    ),
    # bench
    Fault(
        'report the inverse of a speedup',
        'mnv4_mm/bench/measure.py',
        'statistics.median(b / a for a, b in',
        'statistics.median(a / b for a, b in',
        ('tests/bench',),
    ),
    # transfer
    Fault(
        'never take over the claim of a dead process',
        'mnv4_mm/transfer/claims.py',
        'if now.stat().st_mtime - path.stat().st_mtime > EXPIRY:',
        'if False:',
        ('tests/transfer/test_records.py',),
    ),
    Fault(
        'leave the labels of the control as they are',
        'mnv4_mm/transfer/controls.py',
        'random.permutation(self.num_classes)',
        'np.arange(self.num_classes)',
        ('tests/transfer/test_transfer_run.py',),
    ),
    Fault(
        'count a resampled image once',
        'mnv4_mm/transfer/bootstrap.py',
        'range(new + 1, new + count + 1)',
        'range(new + 1, new + 1 + bool(count))',
        ('tests/transfer/test_statistics.py',),
    ),
    Fault(
        'put records of different data into one table',
        'mnv4_mm/transfer/tables.py',
        "('protocol', 'head', 'recipe', 'data'))",
        "('protocol', 'head', 'recipe', 'recipe'))",
        ('tests/transfer/test_transfer_run.py',),
    ),
    Fault(
        'take the runs of another recipe for done',
        'mnv4_mm/transfer/work.py',
        'if value is not None and record[key] != value:',
        'if False:',
        ('tests/transfer/test_records.py',),
    ),
    Fault(
        'tell nets apart without a correction for many pairs',
        'mnv4_mm/transfer/statistics.py',
        'values[a, b] * (len(pairs) - number)',
        'values[a, b]',
        ('tests/transfer/test_statistics.py',),
    ),
    Fault(
        'approve every control',
        'mnv4_mm/transfer/tables.py',
        '{"ok" if is_right else "**FAILED**"}',
        '{"ok" if is_right or True else "**FAILED**"}',
        ('tests/transfer/test_transfer_run.py',),
    ),
    # resumed runs, options, shared files
    Fault(
        'keep the best score of other validation images',
        'mnv4_mm/engine/checkpoints.py',
        "        if 'val' in changed:\n            for key",
        "        if 'val' not in data:\n            for key",
        ('tests/apis/test_own_data.py', '-k', 'notices'),
    ),
    Fault(
        'take the size of a box for its end when it is compared with polygons',
        'mnv4_mm/data/polygons.py',
        'end = start + size',
        'end = size',
        ('tests/data/test_polygons.py',),
    ),
    Fault(
        'append to a line that was cut off',
        'mnv4_mm/json_lines.py',
        'os.truncate(path, whole)',
        'pass',
        ('tests/transfer/test_records.py',),
    ),
    Fault(
        'allow a seed of any size',
        'mnv4_mm/config/values.py',
        'Range(0, 2**32 - 1, none=True)',
        'Range(0, none=True)',
        ('tests/config/test_values.py',),
    ),
    # label, demo, web
    Fault(
        'label the images of the first part in every part',
        'mnv4_mm/label/job.py',
        'self._entries.read_row_group(part)',
        'self._entries.read_row_group(0)',
        ('tests/label/test_label.py',),
    ),
    Fault(
        'send boxes as (y1, x1, y2, x2) to the page',
        'mnv4_mm/demo/server.py',
        'np.nan_to_num(result.boxes).tolist()',
        'np.nan_to_num(result.boxes[:, [1, 0, 3, 2]]).tolist()',
        ('tests/demo/test_server.py',),
    ),
    Fault(
        'fill the input in the browser instead of fitting the image into it',
        'mnv4_mm/web/prepare.js',
        'Math.min(size[0] / height, size[1] / width)',
        'Math.max(size[0] / height, size[1] / width)',
        ('tests/deploy/test_web.py', '-k', 'prepare_is_that'),
    ),
)
