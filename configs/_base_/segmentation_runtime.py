"""Settings of all segmentation runs: mmseg's scope, and intervals counted in iterations."""

_base_ = ['default_runtime.py']

default_scope = 'mmseg'
default_hooks = dict(
    logger=dict(log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=100),
    visualization=dict(_delete_=True, type='OverlayHook'),
)
visualizer = dict(type='Visualizer')
log_processor = dict(by_epoch=False)
