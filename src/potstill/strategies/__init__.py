"""Which tokens a step trains on. One function a file: `build(*, options) -> Strategy`.

A file may state, as literals that are read without importing it:

    LEARNING_RATE   (rate, reason): what `learning_rate: auto` becomes with it
    STUDENT_WRITES  the option that holds the share of rows whose answers the student writes itself
    NEW_TOKENS      the option that holds the most tokens of such an answer
    PASSES          the option that says how often a step's rows are trained on
    STUDENT_WRITES_MORE  the option by which that share rises
    KEEPS_ROWS      the option that puts the rows' own answers beside the student's into a step

Options named `teacher_share` and `proposals` say how the teacher takes part in the student's text; a policy
gradient weighs its tokens by them.
"""
