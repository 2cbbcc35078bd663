"""Export detectors to ONNX with NMS, for mmdeploy: one image of the size of the test pipeline (docs/mmdeploy.md).

python tools/deploy.py configs/deploy/detection_onnxruntime_static.py MODEL_CONFIG CHECKPOINT IMAGE --work-dir DIR
"""

onnx_config = dict(
    type='onnx',
    export_params=True,
    keep_initializers_as_inputs=False,
    opset_version=17,  # the newest that ONNX Runtime 1.15 of the SDK supports
    save_file='end2end.onnx',
    input_names=['input'],
    output_names=['dets', 'labels'],
    input_shape=None,  # width, height; if None, tools/deploy.py uses that of the model
    optimize=False,  # needs a compiled extension that mmdeploy's wheel does not have
)
backend_config = dict(type='onnxruntime')
codebase_config = dict(
    type='mmdet',
    task='ObjectDetection',
    model_type='end2end',
    module=['mnv4_mm.deploy.mmdeploy'],
    # score_thr, nms.iou_threshold and max_per_img of the model's test_cfg take precedence.
    post_processing=dict(
        score_threshold=0.05,
        confidence_threshold=0.005,
        iou_threshold=0.5,
        max_output_boxes_per_class=1000,  # no limit, as in mmdet: more than any max_per_img
        pre_top_k=-1,  # no limit
        keep_top_k=100,
        background_label_id=-1,
    ),
)
