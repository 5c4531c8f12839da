"""Batch fields: what a component may read, matched by the name of its positional parameter.

A field has one meaning everywhere. Which of them a study can supply is decided by its providers
(``lossearch.training.providers``): the data, the model, the training loop, and plugins.
"""

from __future__ import annotations

from typing import Final

TASKS: Final = ("multiclass", "binary", "multilabel", "regression")

# name -> (shape, meaning); B samples, C classes, E embedding width, D targets, K terms.
FIELDS: Final[dict[str, tuple[str, str]]] = {
    "logits": (
        "[B, C]; binary [B] or [B, 1]; dense [B, C, H, W(, Z)]",
        "raw scores, before softmax or sigmoid",
    ),
    "targets": (
        "multiclass int64 [B]; binary, multilabel float [B] or [B, C]; regression [B] or [B, D]; "
        "soft labels float [B, C]",
        "the labels; -1 marks an unknown binary or multilabel one",
    ),
    "embeddings": ("[B, E]", "the vector before the head, not normalised"),
    "embeddings_b": ("[B, E]", "a second view's embeddings, row i matching row i"),
    "embeddings_left": ("[B, E]", "embeddings of the images' left halves, for `embeddings_b`"),
    "logits_b": ("[B, C]", "a second view's logits, row i matching row i"),
    "logits_adv": ("[B, C]", "the logits of attacked inputs, row i matching row i"),
    "rho": ("[B]", "how far a face is symmetric, 0 to 1: whether its halves may be compared"),
    "noise_scores": ("[N]", "the network's scores of samples drawn from a known density q"),
    "noise_logq": ("[N]", "log q of these samples"),
    "data_logq": ("[B]", "log q of the batch's own samples"),
    "predictions": ("[B] or [B, D]", "a regression output"),
    "weight": ("[C, E]", "the classifier's weight, for margin and prototype losses"),
    "teacher_logits": ("[B, C]", "a frozen teacher's logits"),
    "teacher_embeddings": ("[B, E]", "a frozen teacher's embeddings"),
    "features": ("[N, E]", "extra unlabelled or memory embeddings"),
    "index": ("int64 [B]", "each sample's position in the training split"),
    "bag": ("int64 [B]", "the bag of each sample (aggregate labels)"),
    "event": ("[B]", "survival: 1 where the event was seen"),
    "time": ("[B]", "survival: when the event or the censoring was"),
    "class_counts": ("int64 [C]", "how many training samples each class has"),
    "epoch": ("int", "the epoch, from 0"),
    "step": ("int", "the optimizer step, from 0"),
    "total_steps": ("int", "the number of steps that training will take"),
    "model": ("callable", "the network, for losses that call it again"),
    "inputs": ("[B, ...]", "what the network was given"),
    "selection": ("tuple of int64 [P]", "pairs (a1, p, a2, n) or triplets (a, p, n) from a miner"),
    "draws": ("[B]", "random numbers handed in, so that a stochastic component draws none"),
    # What acts on losses rather than on samples:
    "losses": (
        "[B] for a reweighting or a miner; [K] for a balancer",
        "the unreduced values of one loss, or one value for each term",
    ),
    "losses_b": ("[B]", "the losses of a second network on the same samples"),
    "gradients": ("[K, ...]", "one gradient for each term, for a balancer that combines them"),
}
