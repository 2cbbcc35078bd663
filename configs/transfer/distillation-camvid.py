"""What a teacher gains on CamVid: LR-ASPP on Conv-S with and without a Conv-M teacher, five seeds each.

    python -m mnv4_mm transfer distillation-camvid --data CAMVID --workers 2

Data and crops are those of camvid.py; the runs are three times as long.
"""

title = 'CamVid, with and without a teacher'
heads = dict(lraspp=dict(config='mnv4_lraspp_ade20k-mini', iters=1500, size=(160, 224)))
nets = ['mnv4_conv_s']
seeds = [0, 1, 2, 3, 4]
controls = ['distilled']
teacher = 'mnv4_conv_m'
block = 10  # frames of a drive
