"""Detect or segment with a file of ``tools/export.py --to onnx``. Needs numpy, OpenCV and onnxruntime, nothing else.

    python examples/run_onnx.py FILE.onnx PICTURE [--out DRAWN.png] [--score-thr 0.3]

Copy it: all that is to be known is in the file, its JSON, which says whether it is whole, and the lines below.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime as ort


def fail(text):
    print(f'error: {text}', file=sys.stderr)
    sys.exit(2)


def read(path):
    """(H, W, 3) uint8 BGR, turned as EXIF says."""
    data = np.fromfile(path, np.uint8) if Path(path).is_file() else np.empty(0, np.uint8)
    try:
        given = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
        if given is None or given.dtype != np.uint8:
            fail(f'{path} is not a readable picture of 8 bits')
        if given.ndim == 3 and given.shape[2] != 3:
            fail(f'{path} has {given.shape[2]} channels: put it on a background first')
        return cv2.imdecode(data, cv2.IMREAD_COLOR)
    except cv2.error as error:
        fail(f'{path} is not a readable picture: {error.err}')


def load(path):
    """A session, and what the file says of itself."""
    beside = Path(f'{path}.json')
    if not beside.is_file():
        fail(f'{path} has no {beside.name} beside it, which says whether it is whole')
    try:
        expected = json.loads(beside.read_bytes())['files'].values()
    except (ValueError, KeyError, AttributeError, TypeError):
        fail(f'{beside} is damaged')
    if hashlib.sha256(path.read_bytes()).hexdigest() not in expected:
        fail(f'{path} is damaged: its SHA-256 is not the one in {beside.name}')
    try:
        session = ort.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    except Exception as error:  # ONNX Runtime's own have no common base
        fail(f'{path} cannot be loaded: {" ".join(str(error).split())[:200]}')
    about = session.get_modelmeta().custom_metadata_map.get('mnv4_mm')
    if about is None:
        fail(f'{path} is not of tools/export.py')
    return session, json.loads(about)


def prepare(image, about):
    """(H, W, 3) uint8 BGR -> a batch of one, and the picture's height and width in it."""
    height, width = about['input']['size']
    if about['resize']['mode'] == 'stretch':
        placed = height, width
    else:  # as large as fits, at the top left
        factor = min(height / image.shape[0], width / image.shape[1])
        placed = tuple(max(1, int(side * factor + 0.5)) for side in image.shape[:2])
    image = cv2.resize(image, placed[::-1])
    if about['input']['channel_order'] == 'RGB':
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    batch = np.empty((1, height, width, 3), np.uint8)
    batch[:] = about['resize']['pad']
    batch[0, : placed[0], : placed[1]] = image
    return batch, placed


def main():
    parser = argparse.ArgumentParser(description='Detect or segment with an exported .onnx file.')
    parser.add_argument('file', type=Path)
    parser.add_argument('picture')
    parser.add_argument('--out', help='draw the result into this picture')
    parser.add_argument('--score-thr', type=float, default=0.3, help='show boxes from this score on (default: 0.3)')
    args = parser.parse_args()
    if not args.file.is_file():
        fail(f'no file {args.file}')
    image = read(args.picture)
    session, about = load(args.file)
    if about['kind'] not in ('nms', 'class_map') or about['input']['size'] is None or about['input']['normalise']:
        fail('this example is for files with --nms or --class-map, of one size, that take pixels')
    batch, placed = prepare(image, about)
    found = session.run(None, {'image': batch})
    height, width = image.shape[:2]
    if about['kind'] == 'nms':
        for box, score, label in zip(*found, strict=True):
            if score >= args.score_thr:
                box *= np.float32([width / placed[1], height / placed[0]] * 2)
                print(f'{about["classes"][label]} {score:.3f} ' + ' '.join(f'{side:.1f}' for side in box))
                x1, y1, x2, y2 = (round(float(side)) for side in box)
                cv2.rectangle(image, (x1, y1), (x2, y2), (0, 200, 0), 2)
    else:
        labels = cv2.resize(
            found[0][0, : placed[0], : placed[1]], (width, height), interpolation=cv2.INTER_NEAREST_EXACT
        )
        for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
            print(f'{about["classes"][label]} {count / labels.size:.3f}')
        colours = np.array(about['palette'], np.uint8)[:, ::-1]
        image = cv2.addWeighted(image, 0.5, colours[labels], 0.5, 0)
    try:
        if args.out and not cv2.imwrite(args.out, image):
            fail(f'{args.out} cannot be written')
    except cv2.error as error:
        fail(f'{args.out} cannot be written: {error.err}')


if __name__ == '__main__':
    main()
