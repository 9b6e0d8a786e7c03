"""Where a model comes from and what its files say; weights are not read here.

locate       every name a model may have -> a folder
node_cache   what lies on a mount or in a registry, copied once a node
checkpoint   a folder's config, tensors and sentence-transformers settings, checked
heads        heads that vectors are made without, told once
kinds        what a folder is that does not run here, in one sentence
safetensors  which files hold the weights, and where every tensor lies in them
sentence     modules.json and the settings beside it -> how a vector is made
chain        the modules behind pooling, Dense and such -> the steps and tensors of them
tokenizer    text -> token ids
tokenizer_files  which class the tokenizer files name and what it makes of them, as in transformers
files        which files are there, opened and parsed; what is there and cannot be opened is an error
"""
