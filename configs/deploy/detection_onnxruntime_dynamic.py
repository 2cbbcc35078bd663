"""Detectors -> ONNX with NMS for mmdeploy: pictures of any size and number (docs/mmdeploy.md).

python tools/deploy.py configs/deploy/detection_onnxruntime_dynamic.py MODEL_CONFIG CHECKPOINT PICTURE --work-dir DIR
"""

_base_ = ['detection_onnxruntime_static.py']

onnx_config = dict(
    dynamic_axes=dict(
        input={0: 'batch', 2: 'height', 3: 'width'},
        dets={0: 'batch', 1: 'num_dets'},
        labels={0: 'batch', 1: 'num_dets'},
    ),
)
