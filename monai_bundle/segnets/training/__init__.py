"""Train a network: steps, stopping, checkpoints that survive a kill, and reports of the progress.

trainer      one step: mixed precision, clipping, L1, batches in parts
schedule     the learning rate, by steps or by minutes
average      moving average of the weights
stopping     time limit, stop file, signals, early stopping
checkpoint   atomic checkpoints, exact resume, the best and the last weights
rate         a test of learning rates before a training
history      history.jsonl: loss, learning rate and Dice of each epoch
progress     progress bar or log lines; progress.jsonl
tracking     Weights & Biases, Aim
curves       learning_curve.png; comparison of runs
preview      worst_best.png
case_scores  validation.jsonl: the scores of each case
memory       advice when memory runs out
weights      fine-tuning from other weights; one file for an ensemble
"""

from segnets.training.average import WeightAverage
from segnets.training.checkpoint import Checkpoints
from segnets.training.schedule import Schedule
from segnets.training.stopping import EarlyStopping, StopAfterMinutes, StopOnFile, StopOnSignal, Validation
from segnets.training.trainer import Trainer, amp_dtype

__all__ = [
    "Checkpoints",
    "EarlyStopping",
    "Schedule",
    "StopAfterMinutes",
    "StopOnFile",
    "StopOnSignal",
    "Trainer",
    "Validation",
    "WeightAverage",
    "amp_dtype",
]
