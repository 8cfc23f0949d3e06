"""Engines that write text.

A file with the public function `write(request, *, options) -> Iterator[Completion]` is an engine; its
keyword-only arguments are its options. It yields completions as they finish, in any order.

    request   what an engine is given (Request) and what it gives back (Completion, GenerationProgress)
    local     engine: the teacher's weights in this process
    decode    one forward pass at a time over a batch whose places are refilled from a queue
    kv        rows of a key-value cache
    sampling  how the next id is chosen
"""
