"""Our search without HTTP and text tower: coarse index, full score, results. INDEX FOLDER MODE."""

import sys
from pathlib import Path

import numpy as np
import torch
from protocol import serve

from indexer.search.searcher import Searcher, SearchQuery
from model import TextFeatures, XClip


def build():
    """Load what is there; the function that answers."""
    index, folder, mode = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    queries = torch.from_numpy(np.load(folder / "queries.npy"))
    searcher = Searcher(index, XClip.load("openclip:ViT-B-32-quickgelu/random?seed=0", "cpu"))
    base = searcher.model.encode_text(["query"])

    def encode(texts):
        sentences = torch.stack([queries[int(text.split()[-1])] for text in texts])
        rows = torch.zeros(len(texts), dtype=torch.long)
        return TextFeatures(sentences, base.words[rows], base.word_mask[rows], None)

    searcher.model.prepare("scores")
    searcher.prepare()  # as a server does before its first search
    searcher.text_encoder.encode = torch.inference_mode()(encode)
    searcher.search(SearchQuery("query 0", mode=mode))
    searcher._refresher.wait()  # The feature file, made from the index that was drawn a moment ago.

    def ask(number):
        answer = searcher.search(SearchQuery(f"query {number}", limit=10, mode=mode))
        return [int(result.id.removeprefix("video-")) for result in answer.results]

    return ask, {}


serve(build)
