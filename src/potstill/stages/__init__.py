"""One verb a file: its options, what they become where they are `auto`, and `run(spec, state, context) -> state`.

What passes from stage to stage is the frozen `State`; where a stage works is the frozen `Context`
(`_context.py`). A file without a leading underscore is a verb of recipes: adding one
changes no list. Stages leave artifacts in the store; a stage whose inputs are unchanged is taken from there.
"""
