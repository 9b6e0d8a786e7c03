"""An engine in this process.

engine       firesteel.Engine: rows in, NumPy arrays out
pending      rows on their way, and what comes of them
scores       a classifier's logits -> its scores
rows         what rows may be, cut into windows and laid flat
placement    firesteel.plan and Engine.placement
options      the engine's options, checked without a device
claims       who holds what of the host's GPUs
"""
