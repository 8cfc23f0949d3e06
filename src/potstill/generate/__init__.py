"""Engines that write text.

A file with the public function `write(request, *, options) -> Iterator[...]` is an engine; its keyword-only
arguments are its options. One that runs weights takes a `request.Request` (token ids) and yields `Completion`s as
they finish, in any order; one of a served teacher says `TAKES = "messages"`, takes a `served.TextRequest` and
yields `Given`s. Options that it names in `PACE` change no answer and are no part of an artifact's key.

    request   what an engine of weights is given (Request) and what it gives back (Completion, GenerationProgress)
    local     engine: the teacher's weights in this process
    decode    one forward pass at a time over a batch whose places are refilled from a queue
    beside    two models that write one text
    kv        rows of a key-value cache
    sampling  how the next id is chosen

    served    what an engine of a served teacher is given (TextRequest) and what it gives back (Given, Spending)
    openai    engine: an endpoint of the OpenAI protocol
    asks      requests, what identifies them, and which stored reply serves
    journal   every request before it is sent, every reply before it is read; entries: its rows
    answers   from stored replies to answers; replies reads one
    work      a few requests, the bill, the rest; campaign sends them, wire sends one
    faults    the table of everything that can go wrong
    pace      when to send, when to wait, when to give up
    price     what it costs, and the budget; bill says so before the rest is asked
"""
