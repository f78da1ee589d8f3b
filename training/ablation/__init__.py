"""`xclip-search ablate`: what each part of X-CLIP is worth, on the drawn corpus, beside the paper's tables.

Read in this order: `variants` (what is compared), `paper_tables` (what the paper found), `corpus` (real files
to learn from and be judged by), `starting_point` (a CLIP of the drawn world), `settings`, `runner` (one
variant, one seed, through the trainer and the evaluation of every other data set), `grid` (all of them),
`report` and `plot`.
"""
