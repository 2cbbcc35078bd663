"""Gain from a teacher on CamVid: LR-ASPP on Conv-S from random weights, with and without a teacher, five seeds each.

The teacher is LR-ASPP on MobileNetV2 from ImageNet weights, which are downloaded, or read from --weights-dir.

    python -m mnv4_mm transfer distillation-camvid --data CAMVID --workers 2

Data and crops are those of camvid.py; the runs are three times as long.
"""

title = 'CamVid, with and without a teacher'
heads = dict(lraspp=dict(config='mnv4_lraspp_ade20k-mini', iters=1500, size=(160, 224), minutes=3.6))
nets = ['mnv4_conv_s']
seeds = [0, 1, 2, 3, 4]
controls = ['distilled']
teacher = dict(
    net='timm:mobilenetv2_100',
    start='imagenet',
    # The class scores alone: the defaults of segmenters, written out since they are part of the recipe.
    cfg_options={'distillation.weight': 0, 'distillation.logits_weight': 3, 'distillation.temperature': 4},
)
block = 10  # frames of a drive
