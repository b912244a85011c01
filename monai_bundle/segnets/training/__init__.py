"""How a run goes: its steps, when it ends, how it survives a kill, and what is seen of it.

trainer      one step: mixed precision, clipping, L1, batches in parts
schedule     the learning rate, by steps or by minutes
average      of the weights over the last steps
stopping     time, a stop file, signals, patience
checkpoint   atomic checkpoints, exact resume, the best and the last weights
history      history.jsonl: loss, learning rate and Dice, line by line
progress     one line on the console
curves       learning_curve.png; runs side by side
pictures     worst_best.png
memory       out of memory in words
weights      fine-tuning from other weights; one file for an ensemble
"""

from segnets.training.average import WeightAverage
from segnets.training.checkpoint import Checkpoints
from segnets.training.schedule import Schedule
from segnets.training.stopping import EarlyStopping, StopAfterMinutes, StopOnFile, StopOnSignal, Validation
from segnets.training.trainer import Trainer

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
]
