"""Detect or segment with a file of ``tools/export.py --to onnx``. Needs numpy, OpenCV and onnxruntime, nothing else.

    python examples/run_onnx.py FILE.onnx IMAGE [--out DRAWN.png] [--score-thr 0.3]

A script to copy: the metadata inside the file describes input and outputs, and its JSON has the checksum.
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
    """Read an image as (H, W, 3) uint8 BGR: EXIF orientation applied, alpha dropped, 16 bits scaled to 8."""
    data = np.fromfile(path, np.uint8) if Path(path).is_file() else np.empty(0, np.uint8)
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    except cv2.error as error:
        fail(f'{path} is not a readable image: {error.err}')
    if image is None:
        fail(f'{path} is not a readable image')
    return image


def load(path):
    """Return a session and the metadata of the file."""
    sidecar = Path(f'{path}.json')
    if not sidecar.is_file():
        fail(f'{path} has no {sidecar.name} beside it, which has its checksum')
    try:
        expected = json.loads(sidecar.read_bytes())['files'].values()
    except (ValueError, KeyError, AttributeError, TypeError):
        fail(f'{sidecar} is damaged')
    if hashlib.sha256(path.read_bytes()).hexdigest() not in expected:
        fail(f'{path} is damaged: its SHA-256 is not the one in {sidecar.name}')
    try:
        session = ort.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    except Exception as error:  # ONNX Runtime's exceptions have no other common base
        fail(f'{path} cannot be loaded: {" ".join(str(error).split())[:200]}')
    meta = session.get_modelmeta().custom_metadata_map.get('mnv4_mm')
    if meta is None:
        fail(f'{path} was not written by tools/export.py')
    return session, json.loads(meta)


def prepare(image, meta):
    """Return a batch of one for (H, W, 3) uint8 BGR, and the height and width of the image in it."""
    height, width = meta['input']['size']
    if meta['resize']['mode'] == 'stretch':
        placed = height, width
    else:  # letterbox: as large as fits, at the top left
        factor = min(height / image.shape[0], width / image.shape[1])
        placed = tuple(max(1, int(side * factor + 0.5)) for side in image.shape[:2])
    image = cv2.resize(image, placed[::-1])
    if meta['input']['channel_order'] == 'RGB':
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    batch = np.empty((1, height, width, 3), np.uint8)
    batch[:] = meta['resize']['pad']
    batch[0, : placed[0], : placed[1]] = image
    return batch, placed


def main():
    parser = argparse.ArgumentParser(description='Detect or segment with an exported .onnx file.')
    parser.add_argument('file', type=Path)
    parser.add_argument('image')
    parser.add_argument('--out', help='write the image with the results drawn to this file')
    parser.add_argument('--score-thr', type=float, default=0.3, help='minimum score of boxes (default: 0.3)')
    args = parser.parse_args()
    if not args.file.is_file():
        fail(f'no file {args.file}')
    image = read(args.image)
    session, meta = load(args.file)
    if meta['kind'] not in ('nms', 'class_map') or meta['input']['size'] is None or meta['input']['normalise']:
        fail('this example is for files with --nms or --class-map, of one size, that take pixels')
    batch, placed = prepare(image, meta)
    outputs = session.run(None, {'image': batch})
    height, width = image.shape[:2]
    if meta['kind'] == 'nms':
        for box, score, label in zip(*outputs, strict=True):
            if score >= args.score_thr:
                box *= np.float32([width / placed[1], height / placed[0]] * 2)
                print(f'{meta["classes"][label]} {score:.3f} ' + ' '.join(f'{side:.1f}' for side in box))
                x1, y1, x2, y2 = (round(float(side)) for side in box)
                cv2.rectangle(image, (x1, y1), (x2, y2), (0, 200, 0), 2)
    else:
        labels = cv2.resize(
            outputs[0][0, : placed[0], : placed[1]], (width, height), interpolation=cv2.INTER_NEAREST_EXACT
        )
        for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
            print(f'{meta["classes"][label]} {count / labels.size:.3f}')
        colours = np.array(meta['palette'], np.uint8)[:, ::-1]
        image = cv2.addWeighted(image, 0.5, colours[labels], 0.5, 0)
    try:
        if args.out and not cv2.imwrite(args.out, image):
            fail(f'{args.out} cannot be written')
    except cv2.error as error:
        fail(f'{args.out} cannot be written: {error.err}')


if __name__ == '__main__':
    main()
