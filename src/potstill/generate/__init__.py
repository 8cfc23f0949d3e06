"""Engines that write text.

A file with the public function `write(request, *, options) -> Iterator[...]` is an engine; its keyword-only
arguments are its options. One that runs weights takes a `request.Request` (token ids) and yields `Completion`s as
they finish, in any order; one that says `MANY` takes several requests at once and yields each completion with its
request's number, and its workers keep journals of their own. One of a served teacher says `TAKES = "messages"`, takes a `served.TextRequest` and
yields `Given`s. Options that an engine names in `PACE` change no answer and are no part of an artifact's key; its
function `require(teacher)` refuses at the start what cannot work.

    request   what an engine of weights is given (Request) and what it gives back (Completion, GenerationProgress)
    local     engine: the teacher's weights in this process
    vllm      engine: the same weights in vLLM
    pushed    the same for rollouts: vLLM here or served, with weights that are pushed to it
    vllm_settings  what vLLM is told and what it may return, for both
    ray       engine: the local one in workers of Ray
    decode    one forward pass at a time over a batch whose places are refilled from a queue
    beside    two models that write one text
    kv        rows of a key-value cache
    sampling  how the next id is chosen

    served    what an engine of a served teacher is given (TextRequest) and what it gives back (Given, Spending)
    openai    engine: an endpoint of the OpenAI protocol
    batch     engine: the same endpoint's batch files; batch_work does it, batch_calls talks to the provider,
              batch_files writes and joins, batches keeps them in the journal
    asks      requests, what identifies them, and which stored reply serves
    journal   every request before it is sent, every reply before it is read; entries: its rows
    answers   from stored replies to answers; replies reads one
    limits    how fast, how often and for how much
    work      a few requests, the bill, the rest; campaign sends them, wire sends one
    reports   where the answers stand, now and then
    deadlines ends replies that take too long
    faults    the table of everything that can go wrong
    pace      when to send, when to wait, when to give up
    price     what it costs, and the budget; bill says so before the rest is asked
"""
