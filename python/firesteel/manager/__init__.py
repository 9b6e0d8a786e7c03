"""The process that the tasks of an executor share, `python -m firesteel.manager`, and what a worker talks to it with.

remote       firesteel.connect: an Engine whose work is done by the manager
lifecycle    whose manager it is, how it is found and started
process      the manager's own life; __main__ runs it
service      what it answers and computes
relay        what a worker tells of it on its stderr
gpus         which GPUs it may see
"""
