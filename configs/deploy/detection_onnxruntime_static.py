"""Detectors -> ONNX with NMS for mmdeploy: one picture, of the size that the test pipeline makes (docs/mmdeploy.md).

python tools/deploy.py configs/deploy/detection_onnxruntime_static.py MODEL_CONFIG CHECKPOINT PICTURE --work-dir DIR
"""

onnx_config = dict(
    type='onnx',
    export_params=True,
    keep_initializers_as_inputs=False,
    opset_version=17,  # the newest that the SDK's ONNX Runtime 1.15 reads
    save_file='end2end.onnx',
    input_names=['input'],
    output_names=['dets', 'labels'],
    input_shape=None,  # width, height; None: tools/deploy.py takes the model's
    optimize=False,  # would need mmdeploy's compiled extension, which its wheel lacks
)
backend_config = dict(type='onnxruntime')
codebase_config = dict(
    type='mmdet',
    task='ObjectDetection',
    model_type='end2end',
    module=['mnv4_mm.deploy.mmdeploy'],
    # What the model's test_cfg says goes first: score_thr, nms.iou_threshold, max_per_img.
    post_processing=dict(
        score_threshold=0.05,
        confidence_threshold=0.005,
        iou_threshold=0.5,
        max_output_boxes_per_class=1000,  # more than any max_per_img: mmdet has no such limit
        pre_top_k=-1,  # nor this one
        keep_top_k=100,
        background_label_id=-1,
    ),
)
