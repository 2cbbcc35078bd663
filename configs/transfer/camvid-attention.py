"""CamVid, as in camvid.py: the attention of MNv4-Hybrid-M against multi-head attention, and without key-value strides.

    python -m mnv4_mm transfer camvid-attention --data CAMVID --workers 2

`hybrid_m_mhsa` has keys and values of each head of their own, `hybrid_m_kv1` does not down-sample them.
"""

_base_ = 'camvid.py'

title = 'CamVid, attention'
heads = dict(_delete_=True, lraspp=dict(config='mnv4_lraspp_ade20k-mini', iters=500, size=(160, 224), minutes=4.3))
nets = ['mnv4_hybrid_m', 'mnv4_hybrid_m_mhsa', 'mnv4_hybrid_m_kv1', 'mnv4_conv_m']
starts = ['random']
controls = []
costs = {'_delete_': True, 'mnv4_conv_m': 0.84}
