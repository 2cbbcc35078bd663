"""Export detectors to ONNX with NMS, for mmdeploy: any image size and batch size (docs/mmdeploy.md).

python tools/deploy.py configs/deploy/detection_onnxruntime_dynamic.py MODEL_CONFIG CHECKPOINT IMAGE --work-dir DIR
"""

_base_ = ['detection_onnxruntime_static.py']

onnx_config = dict(
    dynamic_axes=dict(
        input={0: 'batch', 2: 'height', 3: 'width'},
        dets={0: 'batch', 1: 'num_dets'},
        labels={0: 'batch', 1: 'num_dets'},
    ),
)
