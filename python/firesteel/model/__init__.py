"""Where a model comes from and what its files say; weights are not read here.

locate       every name a model may have -> a folder
node_cache   what lies on a mount or in a registry, copied once a node
checkpoint   a folder's config, tensors and sentence-transformers settings, checked
tokenizer    text -> token ids
"""
