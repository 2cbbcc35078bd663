"""Export segmenters to ONNX, for mmdeploy: one image of the size of a training crop (docs/mmdeploy.md).

python tools/deploy.py configs/deploy/segmentation_onnxruntime_static.py MODEL_CONFIG CHECKPOINT IMAGE --work-dir DIR

The output is the class of each pixel. For logits, which the SDK resizes to the image as mmseg does:
--cfg-options codebase_config.with_argmax=False
"""

onnx_config = dict(
    type='onnx',
    export_params=True,
    keep_initializers_as_inputs=False,
    opset_version=17,  # the newest that ONNX Runtime 1.15 of the SDK supports
    save_file='end2end.onnx',
    input_names=['input'],
    output_names=['output'],
    input_shape=None,  # width, height; if None, tools/deploy.py uses that of the model
    optimize=False,  # needs a compiled extension that mmdeploy's wheel does not have
)
backend_config = dict(type='onnxruntime')
codebase_config = dict(
    type='mmseg',
    task='Segmentation',
    model_type='end2end',
    module=['mnv4_mm.deploy.mmdeploy'],
    with_argmax=True,
)
