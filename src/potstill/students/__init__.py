"""Ways to make a student before training.

A file with the public function `build(context, *, options) -> Built` is one; its keyword-only arguments are
its options. `_built` defines the context and the result. With the same arguments it may define

    inputs      what identifies the student besides the options (default: the teacher and the training rows)
    reads       how it reads text (default: as the teacher does)
    check       refuses, before any weight is loaded, what cannot be made
    config      its config, without reading weights
    parameters  their number, without reading weights

The files: `depth` keeps some of the teacher's layers, `model` takes another model's weights.
"""
