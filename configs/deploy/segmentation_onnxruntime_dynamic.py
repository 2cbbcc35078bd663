"""Segmenters -> ONNX for mmdeploy: pictures of any size and number (docs/mmdeploy.md).

python tools/deploy.py configs/deploy/segmentation_onnxruntime_dynamic.py MODEL_CONFIG CHECKPOINT PICTURE --work-dir DIR
"""

_base_ = ['segmentation_onnxruntime_static.py']

onnx_config = dict(
    dynamic_axes=dict(
        input={0: 'batch', 2: 'height', 3: 'width'},
        output={0: 'batch', 2: 'height', 3: 'width'},
    ),
)
