"""Segmenters -> ONNX for mmdeploy: one picture of the size of a training crop (docs/mmdeploy.md).

python tools/deploy.py configs/deploy/segmentation_onnxruntime_static.py MODEL_CONFIG CHECKPOINT PICTURE --work-dir DIR

The output is the class of each pixel. Logits instead, which the SDK then scales to the picture as mmseg does:
--cfg-options codebase_config.with_argmax=False
"""

onnx_config = dict(
    type='onnx',
    export_params=True,
    keep_initializers_as_inputs=False,
    opset_version=17,  # the newest that the SDK's ONNX Runtime 1.15 reads
    save_file='end2end.onnx',
    input_names=['input'],
    output_names=['output'],
    input_shape=None,  # width, height; None: tools/deploy.py takes the model's
    optimize=False,  # would need mmdeploy's compiled extension, which its wheel lacks
)
backend_config = dict(type='onnxruntime')
codebase_config = dict(
    type='mmseg',
    task='Segmentation',
    model_type='end2end',
    module=['mnv4_mm.deploy.mmdeploy'],
    with_argmax=True,
)
