"""Teacher signals on disk: written once, checked on every read, found by token ids in any order.

header       what a cache says of itself
keys         an example's key, from its ids and scored positions
blocks       the bytes of shards and blocks
index        where each example is
codecs       one kind of signal a file, as bytes and back
heads        the head that reads cached hidden states
writer       append blocks, go on after a kill, finish
reader       open, look up, join, verify
fidelity     the smallest setting that keeps to a bound, measured

The format is described in docs/cache-format.md. Nothing here imports transformers.
"""
