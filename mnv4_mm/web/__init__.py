"""The page of ``mnv4 demo`` and of ``mnv4 export --to web``, and what it needs to run a model in the browser.

The page reads ``model.json`` beside it, which ``page.description`` makes. This file names one of two back ends. With
``server``, the page sends each image to ``mnv4 demo``. With ``browser``, the page runs an ONNX file itself, by
``runner.js``, ``prepare.js`` and onnxruntime-web.
"""
