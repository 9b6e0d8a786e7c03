"""Where a model comes from and what its files say; weights are not read here.

locate       every name a model may have -> a folder
node_cache   what lies on a mount or in a registry, copied once a node
checkpoint   a folder's config, tensors and sentence-transformers settings, checked
heads        heads that vectors are made without, told once
labels       what the logits of a classifier's head mean: names, and how they become scores
kinds        what a folder is that does not run here, in one sentence
safetensors  which files hold the weights, and where every tensor lies in them
sentence     modules.json and the settings beside it -> how a vector is made
chain        the modules behind pooling, Dense and such -> the steps and tensors of them
tokenizer    text -> token ids
tokenizer_files  the rules of tokenizer files, as in transformers, and what must come out of them
tokenizer_settings  what those files say: class, special and added tokens, keys
tokenizer_classes  the library's object of each class
tokenizer_plain    special tokens in a text, which are plain text
tokenizer_cuts     where a long text can be cut before it is tokenised
sentencepiece_file  pieces, scores and map of characters of a SentencePiece file
files        which files are there, opened and parsed; what is there and cannot be opened is an error
"""
