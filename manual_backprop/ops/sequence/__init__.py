"""Sequences: the chain rule through time."""

from manual_backprop.ops.sequence.gru import gru, gru_cell
from manual_backprop.ops.sequence.linear_recurrence import linear_recurrence
from manual_backprop.ops.sequence.linear_recurrent_unit import linear_recurrent_unit
from manual_backprop.ops.sequence.lstm import lstm, lstm_cell
from manual_backprop.ops.sequence.rnn import rnn, rnn_cell

__all__ = ["gru", "gru_cell", "linear_recurrence", "linear_recurrent_unit", "lstm", "lstm_cell", "rnn", "rnn_cell"]
