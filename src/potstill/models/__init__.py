"""Language models on disk and in memory.

source      where a model's files are
loading     load and save, the tokenizer and what identifies the weights
anatomy     backbone, head and blocks of a model
vocabulary  whether two models share their ids
projection  a head's matrix product and its gradients
"""
