"""Each kind of broken or unusual data that users have is covered by a test, which is named here.

The kinds were collected from reports about other tools that train or run vision models. The tests themselves are not
run from here: ``test_the_tests_of_every_kind_exist`` checks that they have not been renamed or removed.
"""

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CHECK, CHECK_MASKS, PREPARE = (f'tests/data/test_{name}.py' for name in ('check', 'check_masks', 'prepare'))
COCO = 'tests/data/formats/test_coco_json.py'
IMAGES, IMAGE_KINDS = 'tests/test_images.py', 'tests/deploy/test_image_kinds.py'
FILES, OWN_DATA, CLASSES = (
    'tests/apis/test_infer_files.py',
    'tests/apis/test_own_data.py',
    'tests/config/test_classes.py',
)
GUARDS = 'tests/engine/test_training_guards.py'
METRIC, OVERLAY = 'tests/engine/test_coco_metric.py', 'tests/engine/test_overlay.py'
QUANTIZE, TARGETS, VERIFY = (f'tests/deploy/test_{name}.py' for name in ('quantize', 'targets', 'verify'))
TRAINS, REFUSED = f'{PREPARE}::test_data_that_trains', f'{PREPARE}::test_data_that_is_refused'

# Kind of data, or of a run with it -> the tests of what should happen. In brackets: one of many parameters, by its id
# or by a part of its values.
KINDS = {
    # Annotation files.
    'COCO JSON with a byte order mark': (f'{TRAINS}[json-bom]', f'{COCO}::test_every_encoding[utf-8-sig]'),
    'a box that is not a number (NaN), for training or validation': (
        f'{REFUSED}[bbox-nan]',
        f'{REFUSED}[bbox-nan-val]',
    ),
    'boxes in shares of the image instead of pixels': (
        f'{REFUSED}[bbox-normalised]',
        f'{CHECK}::test_boxes_as_shares_are_refused',
    ),
    'boxes whose area is written as 0': (
        f'{TRAINS}[area-zero]',
        f'{CHECK}::test_an_area_that_cannot_be_is_width_times_height',
    ),
    'crowds only': (
        f'{REFUSED}[crowd-all]',
        f'{REFUSED}[crowd-all-val]',
        f'{CHECK}::test_a_split_of_crowds_is_refused',
    ),
    'COCO JSON without area, iscrowd, segmentation, info and licenses': (
        f'{TRAINS}[fields-missing]',
        f'{COCO}::test_keys_that_may_be_missing',
    ),
    'COCO JSON with area but without iscrowd': (f'{TRAINS}[iscrowd-missing]',),
    'ids that count from 0': (f'{TRAINS}[ids-from-zero]', f'{COCO}::test_ids_from_zero'),
    'ids above 2^53': (f'{TRAINS}[ids-huge]', f'{COCO}::test_huge_ids_stay_apart'),
    'a root category with the name of the only class': (f'{COCO}::test_a_root_with_the_name_of_the_only_class',),
    'two categories with one id': (f'{REFUSED}[category-id-twice]',),
    'annotation ids that start anew in each image': (f'{REFUSED}[annotation-ids-restart]',),
    'ids that are text': (
        f'{TRAINS}[ids-strings]',
        f'{COCO}::test_ids_that_are_text_or_too_large_are_replaced',
    ),
    'a box of text, and a box without numbers': (
        f'{REFUSED}[bbox-strings]',
        f"{COCO}::test_wrong_entries_are_findings[set_boxes(['1', '2', '3', '4'], [])]",
    ),
    'the box [0, 0, 0, 0] for an image without objects': (
        f'{TRAINS}[negative-as-zero-box]',
        f'{CHECK}::test_an_image_with_the_zero_box_alone_has_no_objects',
    ),
    # Paths of images.
    'Windows paths that leave the data set': (
        f'{REFUSED}[path-windows]',
        f'{COCO}::test_a_path_that_leaves_the_folder_names_the_image_that_may_be_meant',
    ),
    'a path to an image outside of the data set': (
        f'{REFUSED}[path-outside]',
        f'{CHECK}::test_an_image_outside_of_the_folder_is_refused',
    ),
    'equal names in subfolders': (
        f'{FILES}::test_names_in_subfolders_are_kept',
        f'{OVERLAY}::test_boxes_are_drawn_with_any_class_name_and_names_in_subfolders_are_kept',
    ),
    # Images.
    'width and height as stored, in an image that EXIF turns': (
        f'{REFUSED}[exif-swapped]',
        f'{CHECK}::test_exif_is_named_as_the_reason_of_a_swapped_size',
    ),
    'a WebP image that EXIF turns': (
        f'{PREPARE}::test_a_webp_file_with_an_orientation_is_checked_as_it_is_read',
        f'{IMAGES}::test_orientation_is_applied_whatever_the_format[exif_6.webp]',
    ),
    'a JPEG with a damaged EXIF block': (
        f'{TRAINS}[exif-malformed]',
        f'{IMAGES}::test_damaged_metadata_does_not_matter[junk_exif.jpg]',
    ),
    'an aerial image of 182 megapixels': (f'{IMAGES}::test_images_larger_than_pillows_limit_are_read',),
    'a truncated JPEG among the training images': (
        f'{REFUSED}[train-truncated-jpeg]',
        f'{GUARDS}::test_an_image_that_becomes_unreadable_is_skipped',
    ),
    '16-bit images of a 12-bit sensor': (
        'tests/data/test_check_masks.py::test_an_image_that_is_almost_black_is_mentioned',
        f'{CHECK}::test_16_bit_images_of_a_12_bit_sensor_are_named',
        f'{FILES}::test_images_next_to_black_are_mentioned',
        f'{IMAGE_KINDS}::test_an_image_means_the_same_everywhere[thermal]',
    ),
    'screenshots with an alpha channel': (
        f'{TRAINS}[rgba-screenshot]',
        f'{IMAGE_KINDS}::test_an_image_means_the_same_everywhere[alpha]',
    ),
    'a truncated image in a folder for infer': (f'{FILES}::test_an_unreadable_image_does_not_stop_a_folder',),
    "macOS's files ._a.jpg in a folder for infer": (f'{FILES}::test_hidden_files_are_passed_over',),
    'CMYK, palettes, animations, pages, 1 bit, one pixel, wrong suffixes, brackets in names': (
        f'{FILES}::test_images_of_every_kind[thin [1] .png]',
        *(
            f'{IMAGES}::test_all_readers_return_the_same_pixels[{name}]'
            for name in ('cmyk.jpg', 'palette_4_bits.png', 'frames.webp', 'pages.tif', 'bits.png', 'a_png.jpg')
        ),
    ),
    'an image of 4000x2 pixels': (
        f'{IMAGE_KINDS}::test_an_image_means_the_same_everywhere[thin-lraspp]',
        f'{FILES}::test_images_of_every_kind[thin [1] .png]',
    ),
    # Masks.
    'masks in colours': (f'{CHECK_MASKS}::test_masks_in_colours_without_their_meaning',),
    "Pascal VOC's masks": (
        f'{CHECK_MASKS}::test_vocs_masks',
        'tests/data/test_masks.py::test_masks_become_canonical[voc]',
    ),
    'masks that are saved as JPEG': (f'{CHECK_MASKS}::test_masks_as_jpeg',),
    'masks of 0 and 1 with one class name': (f'{CHECK_MASKS}::test_one_class',),
    'validation masks without a labelled pixel': (
        f'{CHECK_MASKS}::test_no_validation_pixel_has_a_label',
        f'{GUARDS}::test_validation_without_ground_truth_is_a_word',
    ),
    # Nothing to train on, or to measure with.
    'images below the minimum size of the config': (
        f'{OWN_DATA}::test_nothing_to_train_on_is_one_line_before_training',
        f'{PREPARE}::test_images_that_the_config_leaves_out_are_named',
    ),
    'no box in any training image': (f'{REFUSED}[train-all-negative]',),
    'no box in any validation image': (
        f'{REFUSED}[val-without-boxes]',
        f'{GUARDS}::test_boxes_that_cannot_be_measured_are_a_word',
    ),
    # Training.
    'one image a step': (f'{GUARDS}::test_batches_fit_the_data[batch-of-one]',),
    'one image in the last step of an epoch': (f'{GUARDS}::test_batches_fit_the_data[last-batch-of-one]',),
    'no workers, with persistent_workers in the config': (f'{GUARDS}::test_batches_fit_the_data[last-batch-of-one]',),
    'workers started by spawn': (
        f'{GUARDS}::test_workers_may_be_spawned',
        'tests/data/test_coco_dataset.py::test_workers_share_the_file[spawn]',
    ),
    'a learning rate that makes the loss NaN': (f'{GUARDS}::test_a_loss_that_is_not_finite_stops_the_run',),
    'resuming with other classes': (
        f'{OWN_DATA}::test_a_run_is_not_resumed_with_other_classes',
        f'{CLASSES}::test_other_classes_are_refused_and_both_sets_named',
    ),
    'testing on data with the classes in another order': (
        f'{CLASSES}::test_another_order_is_matched',
        f'{OWN_DATA}::test_classes_in_another_order_are_matched_in_evaluation',
    ),
    # Results and exported files.
    'class names of dollar signs': (
        'tests/runtime/test_results.py::test_class_names_with_any_character_are_drawn[$$]',
        f'{OVERLAY}::test_boxes_are_drawn_with_any_class_name_and_names_in_subfolders_are_kept',
    ),
    'a net that detects nothing': (
        f'{FILES}::test_a_net_that_detects_nothing_writes_empty_results',
        f'{METRIC}::test_no_detections_have_an_ap_of_zero',
        f'{TARGETS}::test_no_detections_are_arrays_without_rows',
        f'{TARGETS}::test_a_selection_inside_that_selects_nothing_has_outputs_without_rows',
        f'{TARGETS}::test_a_checkpoint_that_detects_nothing_has_empty_results',
        f'{TARGETS}::test_a_file_that_detects_nothing_has_empty_results',
    ),
    'weights beyond half precision': (
        f'{VERIFY}::test_weights_beyond_half_precision_are_named',
        f'{VERIFY}::test_fp16_that_cannot_hold_the_weights_is_refused[onnx]',
    ),
    'filters of zeros in int8': (
        f'{QUANTIZE}::test_filters_of_zeros_have_finite_outputs',
        f'{QUANTIZE}::test_a_pruned_net_is_exported',
    ),
    'a folder with blanks, brackets and other scripts for exported files': (
        f'{VERIFY}::test_a_path_with_blanks_and_other_scripts',
    ),
}  # fmt: skip


@functools.cache
def read_tests(path: str) -> tuple[str, set[str]]:
    """Return the text of a file, and the names of its tests."""
    text = (ROOT / path).read_text(encoding='utf-8')
    functions = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef))
    return text, {node.name for node in functions if node.name.startswith('test_')}


@pytest.mark.parametrize('kind', KINDS)
def test_the_tests_of_every_kind_exist(kind):
    assert KINDS[kind]
    for test in KINDS[kind]:
        match = re.fullmatch(r'(tests/\S+/test_\w+\.py|tests/test_\w+\.py)::(test_\w+)(?:\[(.+)\])?', test)
        assert match, test
        path, name, parameter = match.groups()
        text, names = read_tests(path)
        assert name in names, f'{path} has no {name}'
        # pytest joins several parameters by hyphens.
        assert not parameter or parameter in text or all(part in text for part in parameter.split('-')), test


def test_the_docs_have_the_number_of_kinds():
    page = (ROOT / 'docs/testing.md').read_text(encoding='utf-8')
    assert f'each of {len(KINDS)} kinds' in page
