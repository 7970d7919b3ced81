"""Mean-field gap of a block: the loss of predicting its tokens at once (docs/explain/method.md, "Mean-field gap").

Shapes: M positions, V vocabulary, G blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from echo_pl.diffusion.distillation_losses import token_log_probs


def one_step_log_probs(logits_MV: Tensor, token_M: Tensor, never_sampled: Sequence[int]) -> Tensor:
    """Log-probability (M,) of each position's token, among the tokens that a decoder may emit."""
    never = torch.tensor(tuple(never_sampled), dtype=torch.long, device=logits_MV.device)
    return token_log_probs(logits_MV.float().index_fill(-1, never, -torch.inf), token_M)


def mean_field_gaps(chain_log_prob_M: Tensor, one_step_log_prob_M: Tensor, block_M: Tensor) -> Tensor:
    """``log p(tokens) along the teacher's chain - sum of one-step log p of the same tokens``, in nats, for every block.

    The chain's log p is the sum of the log-probabilities at which the teacher committed the tokens, each given those committed
    before. For tokens drawn from the chain, the mean gap is KL(chain || product of one-step marginals), which stage 3 reduces.
    For the tokens of a greedy teacher, the default, it is that log-ratio at the teacher's choice and may be negative. A block that
    the teacher commits in one step has a gap of 0 for the teacher.

    Args:
        chain_log_prob_M: log-probabilities of the committed tokens.
        one_step_log_prob_M: those of the same tokens, from the fully masked block with the same prefix.
        block_M: number of each position's block, different for different samples.

    Returns:
        (G,), in the order of rising block numbers.

    >>> import torch
    >>> log = lambda *p: torch.tensor(p).log()
    >>> gaps = mean_field_gaps(log(0.5, 1.0, 0.9), log(0.5, 0.25, 0.9), torch.tensor([0, 0, 1]))
    >>> gaps.exp().tolist()  # one step cannot know that the second token follows from the first
    [4.0, 1.0]
    """
    blocks_G, group_M = block_M.unique(return_inverse=True)
    gap_M = chain_log_prob_M.to(one_step_log_prob_M) - one_step_log_prob_M
    return gap_M.new_zeros(len(blocks_G)).index_add(0, group_M, gap_M)
