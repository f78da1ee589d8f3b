"""The small X-CLIP that ships as the model spec `demo`: trained from scratch on the drawn corpus.

`python -m training.demo_model train` makes the checkpoint, on two cores;
`python -m training.demo_model evaluate` prints its tables.
"""
