"""The page of ``mnv4 demo`` and of ``mnv4 export --to web``, and what it needs to run a model in the browser.

The page reads ``model.json`` beside it (``description``). It names one of two back ends: ``server`` sends each image to
``mnv4 demo``; ``browser`` runs an ONNX file in the page, by ``runner.js``, ``prepare.js`` and onnxruntime-web.
"""
