"""What an answer must not be, to be trained on. One function a file: `problems(answers, context, *, options)`.

It yields the reason why each answer is a bad one, "" where it is not, in the order of the answers.

`action` is an option of every filter and the stage's business, not the function's: `reject` keeps the answer out of
the training data, `count` only counts it and shows samples, `ignore` turns the filter off. A file may state, as
literals that are read without importing it:

    LABEL       what it catches, in a few words
    BY_DEFAULT  whether it works where no recipe names it
    ORDER       which of several reasons an answer is rejected for: the filter of the lowest number has its say first
    ALONE       whether it judges every answer by itself, so that it can judge the first few of a paid teacher
"""
