"""Which tokens a step trains on. One function a file: `build(*, options) -> Strategy`.

A file may state, as literals that are read without importing it:

    LEARNING_RATE   (rate, reason): what `learning_rate: auto` becomes with it
    STUDENT_WRITES  the option that holds the share of rows whose answers the student writes itself
"""
