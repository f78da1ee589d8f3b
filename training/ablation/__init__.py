"""`xclip-search ablate`: what each part of X-CLIP is worth, on the drawn corpus, next to the paper's tables.

Read in this order: `variants` (what is compared), `paper_tables` (what the paper found), `corpus` (files to
learn from and the towers to start from), `settings`, `runner` (each variant with each seed, through the
trainer and the evaluation of every other data set), `report`.
"""
