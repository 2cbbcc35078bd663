"""What every segmentation run shares: as detection, but mmseg's names, and everything counted in iterations."""

_base_ = ['default_runtime.py']

default_scope = 'mmseg'
default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=100),
    visualization=dict(_delete_=True, type='OverlayHook'),
)
visualizer = dict(type='Visualizer')
log_processor = dict(by_epoch=False)
