"""What each word counts, from the captions of a training set."""

from __future__ import annotations

import torch
from torch import Tensor


def inverse_document_frequencies(input_ids: Tensor, vocabulary_size: int) -> Tensor:
    """log((1 + T) / (1 + captions that hold the token)) of every token, float32 [vocabulary_size].

    input_ids: int64 [T, W], captions as the model's tokenizer gives them; what stands after the first end
    token, the highest id, is padding and does not count. A caption is a document (Spärck Jones 1972).
    Start and end, which every caption holds, weigh 0, so only words are left; a token that no caption holds
    weighs most. The added ones, as in scikit-learn's `TfidfTransformer(smooth_idf=True)`, keep that finite.
    Raises ValueError without captions and where an id lies outside the vocabulary.
    """
    if not len(input_ids):
        raise ValueError("no captions to count words in")
    if int(input_ids.min()) < 0 or int(input_ids.max()) >= vocabulary_size:
        raise ValueError(f"token ids must be within 0..{vocabulary_size - 1}")
    positions = torch.arange(input_ids.shape[1], device=input_ids.device)
    real = positions <= input_ids.argmax(dim=1, keepdim=True)  # [T, W]
    captions = torch.arange(len(input_ids), device=input_ids.device)[:, None].expand_as(input_ids)
    once_a_caption = torch.unique(captions[real] * vocabulary_size + input_ids[real])
    num_captions = torch.bincount(once_a_caption % vocabulary_size, minlength=vocabulary_size)
    holding = 1 + num_captions.double()
    # A tensor over a tensor: a number over one is times its reciprocal, which may miss 1 by a rounding error.
    return torch.log(torch.full_like(holding, 1 + len(input_ids)) / holding).float()
