"""Compile an ONNX file for Qualcomm's tensor processor. A script for the environment of ``make npu``.

Run as ``python -I hexagon_compile.py JOB.json`` with the file that ``Hexagon.place`` writes. It imports nothing of this
package, which is not installed there.
"""

import json
import sys
from pathlib import Path

import onnxruntime
import onnxruntime_qnn

PROVIDER = onnxruntime_qnn.get_ep_name()


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    onnxruntime.register_execution_provider_library(PROVIDER, onnxruntime_qnn.get_library_path())
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    for key, value in (('enable', '1'), ('embed_mode', '0'), ('file_path', job['context'])):
        options.add_session_config_entry(f'ep.context_{key}', value)
    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == PROVIDER]
    backend = dict(backend_path=onnxruntime_qnn.get_qnn_htp_path(), htp_arch=job['version'], soc_model=job['chip'])
    options.add_provider_for_devices(devices, backend)
    onnxruntime.InferenceSession(job['path'], options)


if __name__ == '__main__':
    main()
