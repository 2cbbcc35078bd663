"""Export segmenters to ONNX, for mmdeploy: any image size and batch size (docs/mmdeploy.md).

python tools/deploy.py configs/deploy/segmentation_onnxruntime_dynamic.py MODEL_CONFIG CHECKPOINT IMAGE --work-dir DIR
"""

_base_ = ['segmentation_onnxruntime_static.py']

onnx_config = dict(
    dynamic_axes=dict(
        input={0: 'batch', 2: 'height', 3: 'width'},
        output={0: 'batch', 2: 'height', 3: 'width'},
    ),
)
